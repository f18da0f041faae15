"""Chosen coefficients in a living network: k numbers, each added to an entry of one of its vectors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.base.chosen import by_vector
from recast_cli.engine.errors import OptionError


class Moved(nn.Module):
    """Parametrization of a vector v (n,): v + sum of u_j c_j e_j over its chosen entries j.

    Args:
        steps: c (k,) of all vectors, in units.
        rows: Which of them are this vector's.
        entries: Where they stand in it.
        units: u of those.
    """

    def __init__(self, steps: nn.Parameter, rows: Tensor, entries: Tensor, units: Tensor) -> None:
        super().__init__()
        self.steps = steps
        for name, values in (("rows", rows), ("entries", entries), ("units", units)):
            self.register_buffer(name, values, persistent=False)

    def forward(self, vector: Tensor) -> Tensor:
        """The moved vector."""
        added = self.steps[self.get_buffer("rows")] * self.get_buffer("units")
        return vector.index_add(0, self.get_buffer("entries"), added)


class Entries:
    """Chosen coefficients that are trained. What is learned is a step in units: one learning rate serves all of them.

    Args:
        model: A plain merged network, frozen; changed in place once places are chosen.
        entries: The dictionary, see `dictionary`.
        count: k.

    Raises:
        OptionError: The dictionary has fewer entries.

    Attributes:
        steps: (k,), zero at the start.
        places: (k, 2) int32 on the CPU; None until they are chosen, like `units` (k,) and `longest` ().
    """

    def __init__(self, model: nn.Module, entries: Mapping[str, int], count: int) -> None:
        if count > sum(entries.values()):
            what = f"{count} entries are more than the {sum(entries.values())} of this network"
            raise OptionError("choose", what, "Give fewer.")
        self.model, self.names = model, [*entries]
        self.steps = nn.Parameter(torch.zeros(count, device=next(model.parameters()).device))
        self.places: Tensor | None = None
        self.units: Tensor | None = None
        self.longest: Tensor | None = None

    def choose(self, places: Tensor, units: Tensor, longest: Tensor | None = None) -> None:
        """Let the steps be those of `places`, (k, 2) integers, in units (k,); to be called once.

        `longest` () is the norm that no gradient by them should exceed, where there is one.
        """
        self.places, self.units = places.to(torch.int32).cpu(), units.float().cpu()
        device = self.steps.device
        self.longest = None if longest is None else longest.to(device)
        for number, rows in by_vector(self.places).items():
            owner, _, last = self.names[number].rpartition(".")
            here = (torch.tensor(rows), self.places[rows, 1].long(), self.units[rows])
            piece = Moved(self.steps, *(each.to(device) for each in here))
            parametrize.register_parametrization(self.model.get_submodule(owner), last, piece)

    def values(self, steps: Tensor) -> Tensor:
        """What is added to each entry by steps (k,): (k,) float32."""
        assert self.units is not None
        return self.units * steps


def unit_of(vector: Tensor) -> float:
    """The root mean square of a vector."""
    return float(vector.detach().double().square().mean().sqrt())


def vector_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by name."""
    owner, _, last = name.rpartition(".")
    found: Any = getattr(model.get_submodule(owner), last)
    assert isinstance(found, Tensor)
    return found
