"""Chosen coefficients in a living network: k numbers, each added to an entry of one of its vectors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.base.chosen import by_vector
from recast_cli.engine.errors import OptionError


class Moved(nn.Module):
    """Parametrization of a vector v (n,): v + sum of u c_j e_j over its chosen entries j.

    Args:
        steps: c (k,) of all vectors, in units.
        rows: Which of them are this vector's.
        entries: Where they stand in it.
        unit: u.
    """

    def __init__(self, steps: nn.Parameter, rows: Tensor, entries: Tensor, unit: float) -> None:
        super().__init__()
        self.steps, self.unit = steps, unit
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("entries", entries, persistent=False)

    def forward(self, vector: Tensor) -> Tensor:
        """The moved vector."""
        return vector.index_add(0, self.get_buffer("entries"), self.steps[self.get_buffer("rows")], alpha=self.unit)


class Entries:
    """Chosen coefficients that are trained. What is learned is a step in units: one learning rate serves all vectors.

    Args:
        model: A plain merged network, frozen; changed in place once places are chosen.
        entries: The dictionary, see `dictionary`.
        count: k.

    Raises:
        OptionError: The dictionary has fewer entries.

    Attributes:
        steps: (k,), zero at the start.
        places: (k, 2) int32 on the CPU; None until they are chosen.
    """

    def __init__(self, model: nn.Module, entries: Mapping[str, int], count: int) -> None:
        if count > sum(entries.values()):
            what = f"{2 * count} numbers are {count} coefficients, and this network has {sum(entries.values())} entries"
            raise OptionError("choose", what, "Give fewer.")
        self.model, self.names = model, [*entries]
        self.steps = nn.Parameter(torch.zeros(count, device=next(model.parameters()).device))
        self.units = [unit_of(vector_of(model, name)) for name in self.names]
        self.places: Tensor | None = None

    def choose(self, places: Tensor) -> None:
        """Let the steps be those of `places`, (k, 2) integers; to be called once."""
        self.places = places.to(torch.int32).cpu()
        device = self.steps.device
        for number, rows in by_vector(self.places).items():
            owner, _, last = self.names[number].rpartition(".")
            here = [torch.tensor(each, device=device) for each in (rows, self.places[rows, 1].tolist())]
            piece = Moved(self.steps, here[0], here[1], self.units[number])
            parametrize.register_parametrization(self.model.get_submodule(owner), last, piece)

    def values(self, steps: Tensor) -> Tensor:
        """What is added to each entry by steps (k,): (k,) float32."""
        assert self.places is not None
        return torch.tensor([self.units[number] for number in self.places[:, 0].tolist()]) * steps


def unit_of(vector: Tensor) -> float:
    """The root mean square of a vector: a step of one learning rate is as large a part of each."""
    return float(vector.detach().double().square().mean().sqrt())


def vector_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by name."""
    owner, _, last = name.rpartition(".")
    found: Any = getattr(model.get_submodule(owner), last)
    assert isinstance(found, Tensor)
    return found
