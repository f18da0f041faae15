"""LoRA-XS (arXiv 2405.17604): the update of a weight is A R B, and only the small square R is trained."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.compare.baselines.targets import QKV, at_least_one, at_most, choose_linear


class SquareUpdate(nn.Module):
    """Parametrization W -> W + A R B with A (out, r) and B (r, in) frozen, R (r, r) trained from zero."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.square = nn.Parameter(torch.zeros(left.shape[1], left.shape[1], device=left.device, dtype=left.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight (out, in)."""
        # in full precision, as RECAST's mixtures are: bfloat16 would round small changes of R away
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.get_buffer("left") @ self.square @ self.get_buffer("right")


def lora_xs(model: nn.Module, *, rank: int = 2, modules: str = QKV) -> list[nn.Parameter]:
    """LoRA-XS, arXiv 2405.17604: rank² floats a module. R starts at zero, where the paper draws it near zero.

    Returns:
        R (r, r) of every module.
    """
    at_least_one(rank=rank)
    chosen = choose_linear(model, modules, "lora-xs")
    for name, module in chosen.items():
        at_most("rank", rank, min(module.weight.shape), name)
    squares = []
    for module in chosen.values():
        update = SquareUpdate(*leading_parts(module.weight.detach(), rank))
        parametrize.register_parametrization(module, "weight", update)
        squares.append(update.square)
    model.eval()  # what was added, too
    return squares


def leading_parts(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A = U_r S_r (out, r) and B = V_r^T (r, in) of the truncated SVD of a weight (out, in).

    The largest entry of each row of B is made positive: the sign is left open by the SVD.
    """
    u, s, vt = torch.linalg.svd(weight.float(), full_matrices=False)
    left, right = u[:, :rank] * s[:rank], vt[:rank]
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
    return (left * signs.T).to(weight.dtype), (right * signs).to(weight.dtype)
