"""DoRA: magnitude and direction of a weight apart, arXiv 2402.09353."""

import torch
from torch import Tensor, nn

from recast_cli.engine.model.adapters.low_rank import LowRank
from recast_cli.engine.model.adapters.targets import attention, on_weight, weight_of

LEAST = 1e-6
"""Norm that a row is taken to have at least: those of pruned weights may be zero."""


class Magnitude(LowRank):
    """Parametrization W -> m (W + B A) / |W + B A|, where |.| is the norm of each row: one for each output.

    Attributes:
        m: (shares, out/all shares), at the start |W| of the weight that is changed, which RECAST mixes (Eq. 9).
    """

    def __init__(self, weight: Tensor, shares: tuple[int, list[int]], rank: int, generator: torch.Generator) -> None:
        super().__init__(weight, shares, rank, generator)
        rows = weight.unflatten(0, (self.among, -1))[self.get_buffer("wanted")]
        self.m = nn.Parameter(rows.norm(dim=-1))

    def changed(self, shares: Tensor) -> Tensor:
        """All shares of the weight, the wanted ones with their update and their magnitude."""
        wanted = self.get_buffer("wanted")
        moved = shares[wanted] + self.b @ self.a
        # the norm takes part in the gradient: with one template its coefficient would drift otherwise, as it cancels
        return shares.index_copy(0, wanted, (self.m / moved.norm(dim=-1).clamp_min(LEAST))[..., None] * moved)


def dora(model: nn.Module, *, rank: int = 1, seed: int = 0) -> dict[str, nn.Module]:
    """DoRA on q, k and v of every attention, each a slice of its own; options as of `melo`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: on_weight(model, name, Magnitude(weight_of(model, name), shares, rank, generator))
        for name, shares in attention(model, "qkv", "dora").items()
    }
