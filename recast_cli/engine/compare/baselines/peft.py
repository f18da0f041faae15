"""PEFT's road into a timm network: https://huggingface.co/docs/peft.

Every method has `modules` for PEFT's target_modules, `rank` for its r, and one `seed` for all its seeds.
"""

import importlib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from recast_cli.engine.errors import RecastError


def inject(model: nn.Module, config: str, targets: Iterable[str], seed: int, **options: Any) -> list[nn.Parameter]:
    """Let PEFT change the modules `targets` as its config class `config` says, and return what is then trainable.

    Raises:
        RecastError: No PEFT, or one without this method.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise RecastError(f"This method needs PEFT: {error}", "Run pip install 'recast-cli[compare]'.") from None
    if not hasattr(peft, config):
        raise RecastError(f"PEFT {peft.__version__} has no {config}", "Run pip install -U 'recast-cli[compare]'.")
    whole_names = "|".join(re.escape(name) for name in targets)
    with torch.random.fork_rng(devices=[]):  # no other generator is touched
        torch.default_generator.manual_seed(seed)
        # not inject_adapter_in_model, which refuses methods that share floats between modules
        peft.get_peft_model(model, getattr(peft, config)(target_modules=whole_names, **options))
    model.eval()  # PEFT's own modules are made in training mode
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
