"""LoRA shared across layers and pruned: the baseline of Figure 4 of RECAST (ICLR 2025)."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.compare.baselines.targets import QKV, at_least_one, at_most, choose_linear
from recast_cli.engine.errors import RecastError


class Factor(nn.Module):
    """A matrix of which only some entries are there; the others are zero."""

    def __init__(self, shape: tuple[int, int], places: Tensor, values: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("places", places, persistent=False)
        self.values = nn.Parameter(values)

    def forward(self) -> Tensor:
        """The whole matrix (*shape)."""
        flat = self.values.new_zeros(self.shape[0] * self.shape[1])
        return flat.scatter(0, self.get_buffer("places"), self.values).view(self.shape)


class SharedUpdate(nn.Module):
    """Parametrization W -> W + B A, with B (out, r) and A (r, in) children that all layers of one shape share."""

    def __init__(self, b: Factor, a: Factor) -> None:
        super().__init__()
        self.b, self.a = b, a

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight (out, in)."""
        with torch.autocast(weight.device.type, enabled=False):  # as RECAST's mixtures are
            return weight + self.b() @ self.a()


def shared_lora(
    model: nn.Module,
    *,
    rank: int = 1,
    entries: int = 144,
    modules: str = QKV,
    seed: int = 0,
) -> list[nn.Parameter]:
    """LoRA (arXiv 2106.09685) shared by all layers of one shape, and pruned to `entries` floats in all.

    The paper does not say how it prunes. Here the entries that stay are drawn at random, since before training none
    is known to matter more: each column of B and row of A keeps a share by its length, and at least one.
    B starts at zero and A as LoRA's does, so the network starts as it was.

    Args:
        entries: How many floats are trained, those of B and A of all shapes together.
        seed: Of the choice and of A's start.

    Returns:
        The entries of B and of A that stay, for each shape.
    """
    at_least_one(rank=rank, entries=entries)
    layers: dict[tuple[int, int], list[nn.Linear]] = {}
    for name, module in choose_linear(model, modules, "shared-lora").items():
        at_most("rank", rank, min(module.weight.shape), name)
        layers.setdefault((module.out_features, module.in_features), []).append(module)
    lengths = [side for shape in layers for side in shape for _ in range(rank)]  # columns of B, then rows of A
    if entries < len(lengths):
        what = f"entries is {entries}, and B and A have {len(lengths)} columns and rows that need one each"
        raise RecastError(what, "Raise entries, or lower rank.")
    at_most("entries", entries, sum(lengths), "B and A together")
    generator = torch.Generator().manual_seed(seed)
    shares = iter(share_out(entries, lengths))
    parameters = []
    for (outputs, inputs), members in layers.items():
        like = members[0].weight
        columns = [torch.randperm(outputs, generator=generator)[: next(shares)] for _ in range(rank)]
        rows = [torch.randperm(inputs, generator=generator)[: next(shares)] for _ in range(rank)]
        b_places = torch.cat([part * rank + column for column, part in enumerate(columns)]).sort().values
        a_places = torch.cat([part + row * inputs for row, part in enumerate(rows)]).sort().values
        bound = inputs**-0.5  # LoRA's A is drawn as torch draws a linear layer
        start = torch.empty(len(a_places)).uniform_(-bound, bound, generator=generator)
        b = Factor((outputs, rank), b_places.to(like.device), torch.zeros(len(b_places)).to(like))
        a = Factor((rank, inputs), a_places.to(like.device), start.to(like))
        for module in members:
            parametrize.register_parametrization(module, "weight", SharedUpdate(b, a))
        parameters += [b.values, a.values]
    model.eval()  # what was added, too
    return parameters


def share_out(entries: int, lengths: list[int]) -> list[int]:
    """Shares of `entries` in proportion to `lengths`, whole numbers of at least 1 and at most the length.

    Each entry goes where the share is smallest for its length.
    """
    shares = [1] * len(lengths)
    for _ in range(entries - len(lengths)):
        place = min(range(len(lengths)), key=lambda each: shares[each] / lengths[each])
        shares[place] += 1
    return shares
