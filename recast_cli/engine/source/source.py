"""A source: the tensors of a pretrained checkpoint, its modules, and its architecture where that is known."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine.architecture.build import build
from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.architecture.modules import find_modules, ties
from recast_cli.engine.architecture.timm_config import describe
from recast_cli.engine.errors import UnknownArchitecture, option
from recast_cli.engine.layout.families import Modules
from recast_cli.engine.storage.digest import tensors_digest
from recast_cli.engine.storage.tensors import StoredTensors, also_as, specs, without


@dataclass(frozen=True)
class Source:
    """A pretrained checkpoint.

    Attributes:
        name: As the user named it, without folders.
        tensors: Every tensor under its own name; tied ones once, with their other names in `aliases`. Those of
            safetensors files are read whenever they are asked for, and not kept.
        modules: The weights that may be reparameterised.
        architecture: None for a file whose architecture nobody knows.
        digest: Digest over `tensors`.
    """

    name: str
    tensors: Mapping[str, Tensor]
    modules: Modules
    architecture: Architecture | None
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """`sha256:…` over names and bytes of all tensors, whatever file they came in."""
        return tensors_digest(self.tensors)

    def known_architecture(self, hint: str = "") -> Architecture:
        """The architecture. Raises UnknownArchitecture with this hint where nobody knows it."""
        if self.architecture is None:
            raise UnknownArchitecture(self.name, hint or f"Give {option('architecture')}.")
        return self.architecture

    def network(self) -> nn.Module:
        """The network itself, frozen, in eval mode. Raises as `known_architecture` does."""
        architecture = self.known_architecture()
        tensors = dict(self.tensors)
        tensors |= {alias: tensors[name] for alias, name in self.aliases.items()}
        return build(architecture, tensors).requires_grad_(False)


def from_model(name: str, model: torch.nn.Module, args: dict[str, Any]) -> Source:
    """The source that a loaded timm model is."""
    return from_tensors(name, model.state_dict(), model, args)


def from_tensors(name: str, tensors: Mapping[str, Tensor], model: torch.nn.Module, args: dict[str, Any]) -> Source:
    """The source of `tensors` that fit `model`, whose own values do not matter; tied tensors are kept once."""
    aliases = ties(model)
    kept = without(tensors, aliases)
    modules = {module: shape for module, shape in find_modules(model).items() if f"{module}.weight" in kept}
    return Source(name, kept, modules, describe(model, args), aliases)


def under_all_names(tensors: Mapping[str, Tensor], model: torch.nn.Module) -> Mapping[str, Tensor]:
    """`tensors` under all the names that `model` has for one: safetensors' `save_model` keeps one name of each."""
    names: dict[str, list[str]] = {}
    for alias, first in ties(model).items():
        names.setdefault(first, [first]).append(alias)
    lacking: dict[str, str] = {}
    for tied in names.values():
        given = [name for name in tied if name in tensors]
        lacking |= {name: given[0] for name in tied if given and name not in tensors}
    return also_as(tensors, lacking)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes alone: a file may hold its tensors in another type than the network."""
    return {key: spec.shape for key, spec in specs(tensors).items()}


def shared(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Other names of tensors that share their memory -> the first name. What is read from a file shares nothing."""
    if isinstance(tensors, StoredTensors):
        return {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for key, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and seen.setdefault(place, key) != key:
            aliases[key] = seen[place]
    return aliases


def modules_by_name(tensors: Mapping[str, Tensor]) -> Modules:
    """Modules of an unknown architecture: every floating-point `<name>.weight` of 2 to 5 dimensions, no embeddings."""
    return {
        key.removesuffix(".weight"): spec.shape
        for key, spec in specs(tensors).items()
        if key.endswith(".weight")
        and 2 <= len(spec.shape) <= 5
        and spec.dtype.is_floating_point
        and not re.search(r"embed|wte|wpe", key)
    }
