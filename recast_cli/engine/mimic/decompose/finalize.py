"""A base whose tensors were changed after `mimic`: its new id, and how far it is from the source."""

from dataclasses import replace

import torch

from recast_cli.engine.base.base import Base, identify
from recast_cli.engine.mimic.decompose.solution import Solution
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.digest import hashed


def finalize(base: Base, source: Source) -> Base:
    """A base of new tensors with its id and the errors of its modules."""
    errors: dict[str, dict[str, float]] = {}
    for bank in base.layout.banks:
        weights = torch.stack([source.tensors[f"{module}.weight"].float() for module in bank.modules])
        coefficients = torch.stack([base.coefficients(module) for module in bank.modules])
        errors |= zip(
            bank.modules, Solution(base.templates(bank), coefficients).errors(weights, bank.means), strict=True
        )
    found = {name: hashed(tensor) for name, tensor in base.tensors.items()}
    return replace(base, base_id=identify(base.layout, found, base.codes), errors=errors)
