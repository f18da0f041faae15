"""RoSA: a low-rank and a sparse update together, arXiv 2401.04679; and the sparse one alone in the MLPs.

RECAST's paper prints Eq. 10 as a mask times W, which would change only the size of entries that are there. RoSA adds
a sparse matrix of free values, and so does this.
"""

from __future__ import annotations

import torch
from torch import nn

from recast_cli.engine.adapters.low_rank import LowRank
from recast_cli.engine.adapters.places import attention, mlps, on_weight, projections, weight_of
from recast_cli.engine.adapters.sparse import Sparse


def rosa(
    model: nn.Module,
    *,
    rank: int = 1,
    density: float = 0.017,
    seed: int = 0,
) -> dict[str, nn.Module]:
    """W + S + B A on q, k, v and proj of every attention.

    Args:
        model: Frozen, in eval mode; changed in place, but not what it computes.
        rank: r.
        density: Share of a weight's entries that S has.
        seed: Of A's start.

    Returns:
        Name -> what was put there: `<module>.low_rank` with `a` and `b`, `<module>.sparse` with `values` and `places`.

    Raises:
        RecastError: The network has no attention.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = attention(model, "qkv", "rosa") | {name: (1, [0]) for name in projections(model)}
    pieces: dict[str, nn.Module] = {}
    for name, shares in chosen.items():
        weight = weight_of(model, name)
        pieces[f"{name}.sparse"] = on_weight(model, name, Sparse(weight, density))
        pieces[f"{name}.low_rank"] = on_weight(model, name, LowRank(weight, shares, rank, generator))
    return pieces


def rosa_mlp(model: nn.Module, *, density: float = 1e-5) -> dict[str, nn.Module]:
    """W + S in every MLP: 144 entries in a whole ViT-Small. Options, result and errors as of `rosa`."""
    return {
        f"{name}.sparse": on_weight(model, name, Sparse(weight_of(model, name), density))
        for name in mlps(model, "rosa-mlp")
    }
