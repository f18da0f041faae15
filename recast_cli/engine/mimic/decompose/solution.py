"""What every solver returns, and how its distance from the source is measured."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.base.mixture import restore

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"smooth-l1": F.smooth_l1_loss, "mse": F.mse_loss}
OnStep = Callable[[int, float], None]
"""Called with steps done and the loss."""


class Solution(NamedTuple):
    """Templates (n, *shape) and coefficients (layers, K, n), both float32."""

    templates: Tensor
    coefficients: Tensor

    def errors(self, weights: Tensor, means: bool = False) -> list[dict[str, float]]:
        """Per layer of `weights` (layers, *shape): relative Frobenius error |W - S| / |S| and cosine of W and S.

        `means` as of `restore`.
        """
        result = []
        for coefficients, source in zip(self.coefficients, weights.float(), strict=True):
            mixed = restore(coefficients, self.templates, means)
            if torch.equal(mixed, source):
                result.append({"relative_error": 0.0, "cosine": 1.0})
                continue
            mixed, source = mixed.double(), source.double()
            norm = source.norm().clamp_min(torch.finfo(torch.float64).tiny)
            cosine = F.cosine_similarity(mixed.flatten(), source.flatten(), dim=0)
            result.append({"relative_error": float((mixed - source).norm() / norm), "cosine": float(cosine)})
        return result


def mix_all(coefficients: Tensor, templates: Tensor) -> Tensor:
    """All weights of a bank at once: coefficients (layers, K, n), templates (n, *shape) -> (layers, *shape)."""
    return torch.tensordot(coefficients.mean(1), templates, dims=1)
