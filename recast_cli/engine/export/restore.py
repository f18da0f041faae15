"""A base back to its source: every tensor under its own name and in its own type, one bank in memory at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from recast_cli.engine.base.base import Base
from recast_cli.engine.base.mixture import restore
from recast_cli.engine.storage.digest import Hashed, digest, hashed
from recast_cli.engine.storage.tensors import TYPES, Spec, read_stored
from recast_cli.engine.storage.writer import writing

PLAIN = {"format": "pt"}
"""What safetensors files of PyTorch's own say of themselves; some programs open no others."""


def source_specs(base: Base) -> dict[str, Spec]:
    """Type and shape of every tensor of the source; none is read for it."""
    found = dict(base.rest_specs)
    for bank in base.layout.banks:
        for module in bank.modules:
            found[f"{module}.weight"] = Spec(TYPES[base.types.get(module, "F32")], bank.shape)
    return found | {alias: found[name] for alias, name in base.aliases.items()}


def source_tensors(base: Base) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor of the source, those that are reproduced first. Aliases are left out.

    They are read from the base's file where it has one, as what is mapped counts as memory of the process.
    """
    stored = replace(base, tensors=read_stored(base.path)) if base.path else base
    for bank in base.layout.banks:
        templates = stored.templates(bank)
        for module in bank.modules:
            weight = restore(stored.coefficients(module), templates, bank.means)
            yield f"{module}.weight", weight.to(TYPES[base.types.get(module, "F32")])
        del templates, weight  # before the next bank is read
    for name in base.rest_specs:
        yield name, stored.value(name)


def write_source(base: Base, path: Path) -> bool:
    """Write the source's tensors to a safetensors file, whole or not at all.

    Returns:
        Whether they are those of the source, bit by bit: by the digest that the base keeps of it.

    Raises:
        OSError: The disk is full, among others.
    """
    others: dict[str, list[str]] = {}
    for alias, name in base.aliases.items():
        others.setdefault(name, []).append(alias)
    found: dict[str, Hashed] = {}
    with writing(path, source_specs(base), PLAIN, key=None) as writer:
        for name, tensor in source_tensors(base):
            found[name] = hashed(tensor)
            for each in (name, *others.get(name, ())):
                writer.write(each, tensor)
            del tensor  # as `write_all` does
        writer.finish(PLAIN)
    return digest(found) == base.source_digest
