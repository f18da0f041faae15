"""The methods by name; options are checked here, once for all of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from recast_cli.engine.errors import RecastError, nearest
from recast_cli.engine.methods.lora_xs import lora_xs
from recast_cli.engine.methods.low_rank import dora, lora, tinylora, unilora
from recast_cli.engine.methods.shared_lora import shared_lora
from recast_cli.engine.methods.spectral import fourierft, waveft
from recast_cli.engine.methods.subsets import bias, full, norm

Method = Callable[..., list[nn.Parameter]]


def checked(name: str, function: Method) -> Method:
    """The method itself, with a RecastError for an option that it does not have, or one of another type."""
    defaults = {key: each.default for key, each in list(inspect.signature(function).parameters.items())[1:]}

    @functools.wraps(function)
    def method(model: nn.Module, **options: Any) -> list[nn.Parameter]:
        for key, value in options.items():
            if key not in defaults:
                raise RecastError(f"{name} has no option '{key}'", nearest(key, defaults, "It has no options."))
            kinds = (int, float) if isinstance(defaults[key], float) else (type(defaults[key]),)
            if not isinstance(value, kinds) or isinstance(value, bool):
                wanted = {int: "a whole number", float: "a number", str: "a text"}[kinds[-1]]
                raise RecastError(f"{name}: {key} is {value!r}, and {wanted} is wanted", "Correct it.")
        return function(model, **options)

    return method


METHODS: dict[str, Method] = {
    name: checked(name, function)
    for name, function in {
        "bias": bias,
        "norm": norm,
        "full": full,
        "lora": lora,
        "dora": dora,
        "lora-xs": lora_xs,
        "tinylora": tinylora,
        "unilora": unilora,
        "fourierft": fourierft,
        "waveft": waveft,
        "shared-lora": shared_lora,
    }.items()
}
"""Name -> method: (model, **options) -> trainable parameters. Wrong options are a RecastError."""
