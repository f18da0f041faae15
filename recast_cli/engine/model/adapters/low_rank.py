"""W + B A, LoRA's update, on some of the equal shares that the rows of a weight fall into."""

import torch
from torch import Tensor, nn


class LowRank(nn.Module):
    """Parametrization W -> W + B A on the wanted shares of W's rows: arXiv 2106.09685, Eq. 3, with alpha = r.

    Attributes:
        a: (shares, r, in), uniform in ±1/sqrt(in), as torch draws a linear layer.
        b: (shares, out/all shares, r), zero at the start, so that W is unchanged then.
    """

    def __init__(self, weight: Tensor, shares: tuple[int, list[int]], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.among, wanted = shares
        outputs, inputs = weight.shape
        bound = inputs**-0.5
        start = torch.empty(len(wanted), rank, inputs).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(start.to(weight))
        self.b = nn.Parameter(weight.new_zeros(len(wanted), outputs // self.among, rank))
        self.register_buffer("wanted", torch.tensor(wanted, device=weight.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight (out, in)."""
        with torch.autocast(weight.device.type, enabled=False):  # as RECAST's mixtures are
            return self.changed(weight.unflatten(0, (self.among, -1))).flatten(0, 1)

    def changed(self, shares: Tensor) -> Tensor:
        """All shares (shares, out/shares, in) of the weight, the wanted ones with their update."""
        return shares.index_add(0, self.get_buffer("wanted"), self.b @ self.a)
