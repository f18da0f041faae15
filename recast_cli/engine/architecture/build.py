"""timm networks: build one from a state dict at any image size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.architecture.timm_config import check_name, quiet
from recast_cli.engine.errors import RecastError, option
from recast_cli.engine.storage.tensors import specs

DRAWS = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
"""What fills weights with random numbers; torch's other initialisations end in one of these."""


class NothingDrawn(TorchFunctionMode):
    """Within it random numbers for weights are zeros, for a network whose weights are loaded next.

    Drawing them took two thirds of the time in which ViT-L was made.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DRAWS:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            with torch.no_grad():
                return tensor.zero_()
        if func == Tensor.erfinv_ or (func == Tensor.clamp_ and args[0].is_meta):
            # what makes a truncated normal of uniform values: 0 stays 0, and where there are no values it is slow
            return args[0]
        return func(*args, **(kwargs or {}))


def create(architecture: Architecture, overlay: dict[str, Any] | None = None, **args: Any) -> nn.Module:
    """`timm.create_model` for a stored architecture: a plain model in eval mode.

    Its weights are to be loaded, unless `overlay` has them for timm's pretrained config.
    """
    name, known = architecture.name.split(".")[0], {f.name for f in dataclasses.fields(PretrainedCfg)}
    config = {k: v for k, v in architecture.config.items() if k in known} | (overlay or {})
    args = {"pretrained": overlay is not None, "pretrained_cfg": config, **architecture.args, **args}
    with quiet(), NothingDrawn():
        return timm.create_model(name, **args).eval()


def skeleton(name: str, **args: Any) -> nn.Module:
    """`timm.create_model` on the meta device: names and shapes without values, in no time and no memory."""
    with quiet():
        try:
            with torch.device("meta"), NothingDrawn():
                return timm.create_model(name, **args)
        except Exception:  # an architecture that computes with values while it is built; or a real error, raised again
            return timm.create_model(name, **args)


def build(architecture: Architecture, state: dict[str, Tensor], image_size: int | None = None) -> nn.Module:
    """The network with the weights of `state`, in eval mode, for images of `image_size` pixels.

    At another size than its own, timm's checkpoint filter resamples position embeddings; networks that take any
    size just take it.

    Raises:
        RecastError: timm does not know the architecture, the weights do not fit it, or they fix the image size.
    """
    check_name(architecture.name)
    size = image_size or architecture.image_size
    if size == architecture.image_size:
        model = create(architecture)
        load_weights(model, state, architecture.name)
        return model
    refusal = RecastError(
        f"{architecture.name} does not take images of {size} px: its weights or its strides fix the image size "
        f"({architecture.image_size} px is its own)",
        f"Leave out {option('image_size')}, or try another.",
    )
    overlay = {"state_dict": dict(state), "label_offset": 0, "num_classes": architecture.args["num_classes"]}
    try:
        model = create(architecture, overlay, img_size=size)
    except TypeError:
        model = create(architecture)  # takes no img_size: either any size will do, or the trial below says no
        load_weights(model, state, architecture.name)
    except (RuntimeError, ValueError, AssertionError, KeyError, IndexError):
        raise refusal from None
    try:
        with torch.no_grad():
            model(torch.zeros(1, architecture.data["input_size"][0], size, size))
    except (RuntimeError, ValueError, AssertionError, IndexError):
        raise refusal from None
    return model


def load_weights(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load `state` strictly. Raises RecastError as `check_fit` does."""
    check_fit(model, state, name)
    model.load_state_dict(state)


def check_fit(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Raise RecastError naming the first keys or shapes of `state` that are not the model's; no value is looked at."""
    own, given = specs(model.state_dict()), specs(state)
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    wrong = [key for key in own if key in given and own[key].shape != given[key].shape]
    if missing or unexpected or wrong:
        parts = [f"lacks {first_of(missing)}"] if missing else []
        parts += [f"has {first_of(unexpected)} too many"] if unexpected else []
        parts += [f"has {key} of shape {given[key].shape} instead of {own[key].shape}" for key in wrong[:1]]
        hint = f"Check {option('architecture')}."
        raise RecastError(f"The weights do not fit {name}: the file {', '.join(parts)}", hint)


def first_of(keys: list[str]) -> str:
    """`a` or `a and 3 more`."""
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
