"""Which modules a method changes: those whose whole names a regular expression matches."""

import re
from typing import cast

from torch import nn

from recast_cli.engine.architecture.modules import find_modules
from recast_cli.engine.errors import RecastError

QKV = r"blocks\.\d+\.attn\.qkv"
"""Queries, keys and values of timm's vision transformers: the modules of LoRA's paper, and of RECAST's 48 floats."""
SHOWN = 8
"""Roles that an error lists."""


def choose_linear(model: nn.Module, modules: str, method: str) -> dict[str, nn.Linear]:
    """The linear modules that `modules` matches, in the network's order; the classifier is never one of them.

    Raises:
        RecastError: It matches none, or a convolution, which `method` does not change.
    """
    found = choose(model, modules)
    for name, module in found.items():
        if not isinstance(module, nn.Linear):
            hint = "Give `modules` that match linear layers only, or use lora, bias or norm."
            raise RecastError(f"{method} changes linear layers only, and {name} is a {type(module).__name__}", hint)
    return cast(dict[str, nn.Linear], found)


def choose(model: nn.Module, modules: str) -> dict[str, nn.Module]:
    """The linear and convolution modules that `modules` matches; see `choose_linear`."""
    try:
        pattern = re.compile(modules)
    except re.error as error:
        raise RecastError(f"modules: {modules} is no regular expression: {error}", "Correct it.") from None
    names = list(find_modules(model))
    found = {name: model.get_submodule(name) for name in names if pattern.fullmatch(name)}
    if not found:
        roles = list(dict.fromkeys(re.sub(r"\d+", r"\\d+", name.replace(".", r"\.")) for name in names))
        listed = ", ".join(roles[:SHOWN]) + (", …" if len(roles) > SHOWN else "")
        raise RecastError(f"modules: {modules} matches no whole name of a module", f"Here are {listed}.")
    return found


def at_least_one(**options: int) -> None:
    """Raise RecastError for an option below 1."""
    for name, value in options.items():
        if value < 1:
            raise RecastError(f"{name} is {value}, and 1 is the least", "Correct it.")


def at_most(name: str, value: int, most: int, where: str) -> None:
    """Raise RecastError for an option above what `where` holds."""
    if value > most:
        raise RecastError(f"{name} is {value}, and {where} has room for {most}", f"Lower {name}.")
