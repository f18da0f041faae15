"""Adapters: what takes a few thousand floats a task beside RECAST's coefficients, or instead of them.

An adapter is a function (model, **options) -> pieces, by name. It changes the model in place and leaves what it
computes as it was. A piece is a module: a parametrization of a weight, put after RECAST's mixture where there is one
and otherwise on the frozen weight; or a module beside others, tied in by hooks. Its parameters are trained, its buffers
are chosen before and stay, and both are what the task's file holds.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.errors import DamagedFile
from recast_cli.engine.model.adapters.adaptformer import adaptformer
from recast_cli.engine.model.adapters.clr import clr
from recast_cli.engine.model.adapters.dora import dora
from recast_cli.engine.model.adapters.melo import melo
from recast_cli.engine.model.adapters.piggyback import from_bits, piggyback, to_bits
from recast_cli.engine.model.adapters.rosa import Sparse, rosa, rosa_mlp

ADAPTERS: dict[str, Callable[..., dict[str, nn.Module]]] = {
    each.__name__.replace("_", "-"): each for each in (melo, adaptformer, dora, rosa, rosa_mlp, piggyback, clr)
}
PACKING = {"piggyback": (to_bits, from_bits)}
"""How trained tensors are packed in a file where they are not as they are, and unpacked: into one like the trained."""


@dataclass(frozen=True)
class Adapter:
    """What a task learned in an adapter.

    Attributes:
        name: One of ADAPTERS.
        options: Its options.
        tensors: `<piece>.<parameter or buffer>`, as the file holds them.
    """

    name: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]


class Installed:
    """An adapter in a network.

    Args:
        model: Frozen, in eval mode; changed in place.
        name: One of ADAPTERS.
        options: Those of its options that are not its defaults; what it does not have is left out.

    Raises:
        RecastError: The network has no place for it.
    """

    def __init__(self, model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
        known = inspect.signature(ADAPTERS[name]).parameters
        self.name, self.options = name, {key: value for key, value in options.items() if key in known}
        self.pieces = ADAPTERS[name](model, **self.options)
        model.eval()  # what was added, too
        self.parameters: dict[str, nn.Parameter] = {}
        self.fixed: dict[str, Tensor] = {}
        for place, piece in self.pieces.items():
            for key, value in piece.requires_grad_(True).state_dict(keep_vars=True).items():
                own = self.parameters if isinstance(value, nn.Parameter) else self.fixed
                own[f"{place}.{key}"] = value

    @property
    def floats(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def choose(self, importance: Callable[[list[str]], dict[str, Tensor]]) -> None:
        """Choose the places of sparse updates by names of modules -> how much each entry of their weights matters."""
        sparse = {
            place.removesuffix(".sparse"): piece for place, piece in self.pieces.items() if isinstance(piece, Sparse)
        }
        if sparse:
            for name, scores in importance(list(sparse)).items():
                sparse[name].choose(scores)

    def fix(self, fixed: Mapping[str, Tensor]) -> None:
        """Choose what was chosen before: tensors as in `fixed`."""
        for key, value in fixed.items():
            self.fixed[key].copy_(value)

    def learned(self, values: list[Tensor]) -> Adapter:
        """What was learned, from values in the order of `parameters`."""
        named = dict(zip(self.parameters, values, strict=True))
        if self.name in PACKING:
            pack, _ = PACKING[self.name]
            named = {key: pack(value) for key, value in named.items()}
        fixed = {key: value.detach().cpu() for key, value in self.fixed.items()}
        return Adapter(self.name, self.options, named | fixed)

    @torch.no_grad()
    def restore(self, adapter: Adapter) -> None:
        """Write what was learned into the network.

        Raises:
            RecastError: Tensors are missing, too many, or of other shapes.
        """
        own = {**self.parameters, **self.fixed}
        if own.keys() != adapter.tensors.keys():
            name = sorted(own.keys() ^ adapter.tensors.keys())[0]
            raise DamagedFile(f"The adapter's tensor {name} is missing or too many", "Adapt the task again.")
        for key, value in own.items():
            given = adapter.tensors[key]
            if self.name in PACKING and key in self.parameters:
                _, unpack = PACKING[self.name]
                given = unpack(given, value.cpu())
            if given.shape != value.shape:
                what = f"The adapter's tensor {key} has shape {tuple(given.shape)} instead of {tuple(value.shape)}"
                raise DamagedFile(what, "Adapt the task again.")
            value.copy_(given)


def add_learned(model: nn.Module, adapter: Adapter) -> None:
    """Change a merged network by what a task learned in an adapter: plain weights again wherever that is possible.

    Modules beside others stay.
    """
    Installed(model, adapter.name, adapter.options).restore(adapter)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    model.requires_grad_(False)
