"""PiggyBack: a binary mask on every weight, arXiv 1801.06519."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recast_cli.engine.architecture.modules import find_modules
from recast_cli.engine.model.adapters.targets import convolutions, on_weight, weight_of

START, THRESHOLD = 1e-2, 5e-3
"""Every real-valued mask starts above the threshold, so that nothing is masked then."""


class StraightThrough(torch.autograd.Function):
    """1 where a real number is above the threshold, else 0; backwards as if it were the number itself."""

    @staticmethod
    def forward(ctx: Any, real: Tensor) -> Tensor:
        return (real > THRESHOLD).to(real.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Mask(nn.Module):
    """Parametrization W -> W * [real > threshold], entry by entry."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.full_like(weight, START))

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        return weight * StraightThrough.apply(self.real)


def piggyback(model: nn.Module) -> dict[str, nn.Module]:
    """A mask on the weight of every convolution and linear module of a convolutional network, but the classifier.

    Returns:
        Name -> what was put there: `real` of every weight, in its shape.

    Raises:
        RecastError: The network has no convolutions.
    """
    convolutions(model, "piggyback")  # an error where there are none
    return {name: on_weight(model, name, Mask(weight_of(model, name))) for name in find_modules(model)}


def to_bits(real: Tensor) -> Tensor:
    """A real-valued mask (...) as the file holds it: one bit an entry, (ceil(N/8),) uint8, the first in the highest."""
    return torch.from_numpy(np.packbits((real > THRESHOLD).cpu().numpy()))


def from_bits(packed: Tensor, like: Tensor) -> Tensor:
    """A real-valued mask in the shape of `like` that gives the bits: 0 where an entry is masked."""
    bits = torch.from_numpy(np.unpackbits(packed.numpy())[: like.numel()])
    return START * bits.view_as(like).to(like.dtype)
