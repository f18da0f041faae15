"""MeLo: low-rank updates of queries and values, arXiv 2311.08236."""

import torch
from torch import nn

from recast_cli.engine.model.adapters.low_rank import LowRank
from recast_cli.engine.model.adapters.targets import attention, on_weight, weight_of


def melo(model: nn.Module, *, rank: int = 1, seed: int = 0) -> dict[str, nn.Module]:
    """W + B A on q and v of every attention; the official code has rank 4 and alpha 4.

    Args:
        model: Frozen, in eval mode; changed in place, but not what it computes.
        rank: r.
        seed: Of A's start.

    Returns:
        Name -> what was put there: `a` (2, r, in) and `b` (2, out, r) of every attention.

    Raises:
        RecastError: The network has no attention.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: on_weight(model, name, LowRank(weight_of(model, name), shares, rank, generator))
        for name, shares in attention(model, "qv", "melo").items()
    }
