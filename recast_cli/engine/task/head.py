"""The head of a task: a linear classifier on a network's features."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Head(NamedTuple):
    """Weight (classes, features) and bias (classes,), float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, features) -> logits (N, classes)."""
        return F.linear(features, self.weight, self.bias)

    @property
    def floats(self) -> int:
        """How many numbers it has."""
        return self.weight.numel() + self.bias.numel()
