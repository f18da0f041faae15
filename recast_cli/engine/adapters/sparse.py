"""W + S with few entries in S, whose places are chosen by accumulated gradients: the sparse half of RoSA."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sparse(nn.Module):
    """Parametrization W -> W + S: arXiv 2401.04679.

    Attributes:
        values: (k,), zero at the start.
        places: (k,) int32, where they stand in the flat weight: the first ones until they are chosen.
    """

    def __init__(self, weight: Tensor, density: float) -> None:
        super().__init__()
        count = max(1, round(density * weight.numel()))
        self.values = nn.Parameter(weight.new_zeros(count))
        self.register_buffer("places", torch.arange(count, device=weight.device, dtype=torch.int32))

    def choose(self, importance: Tensor) -> None:
        """Put the values where `importance`, a number for each entry of the weight, is largest."""
        self.get_buffer("places").copy_(importance.flatten().topk(len(self.values)).indices.sort().values)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight (out, in)."""
        with torch.autocast(weight.device.type, enabled=False):  # as RECAST's mixtures are
            return weight.flatten().index_add(0, self.get_buffer("places"), self.values).view_as(weight)
