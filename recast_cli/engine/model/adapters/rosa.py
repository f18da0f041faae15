"""RoSA: a low-rank and a sparse update together, arXiv 2401.04679; and the sparse one alone in the MLPs.

RECAST's paper prints Eq. 10 as a mask times W, which would change only the size of entries that are there. RoSA adds
a sparse matrix of free values, and so does this.
"""

import torch
from torch import Tensor, nn

from recast_cli.engine.model.adapters.low_rank import LowRank
from recast_cli.engine.model.adapters.targets import attention, linear_modules, mlps, on_weight, weight_of


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


def rosa(model: nn.Module, *, rank: int = 1, density: float = 0.017, seed: int = 0) -> dict[str, nn.Module]:
    """W + S + B A on q, k, v and proj of every attention.

    Args:
        model: As of `melo`, like `rank` and `seed`.
        density: Share of a weight's entries that S has.

    Returns:
        Name -> what was put there: `<module>.low_rank` with `a` and `b`, `<module>.sparse` with `values` and `places`.

    Raises:
        RecastError: The network has no attention.
    """
    generator = torch.Generator().manual_seed(seed)
    projections = [name for name in linear_modules(model) if name.endswith("attn.proj")]
    chosen = attention(model, "qkv", "rosa") | {name: (1, [0]) for name in projections}
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
