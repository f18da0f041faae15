"""What the inputs of a linear layer or of a convolution are like: means and products, over all samples of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 2**24
"""Values of unfolded inputs that are in memory at a time."""
SAMPLES = 2**14
"""Samples that a layer's inputs are judged by, evenly spaced: twenty for each of 800 columns."""


@dataclass
class Inputs:
    """Of a layer's inputs, as they are in the source (x) and after rounding what stands before (y).

    Attributes:
        products: sum of y y^T over samples, (G, columns, columns); about the means where `measure` was asked for that.
        source: Mean of x, (G, columns).
        rounded: Mean of y, of the same shape.
    """

    products: Tensor
    source: Tensor
    rounded: Tensor


def measurable(module: nn.Module) -> bool:
    """Whether `measure` knows what the module does: a plain linear layer, or a plain two-dimensional convolution."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    plain = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
    return plain and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def groups_of(module: nn.Module) -> int:
    """G: the groups of a convolution, 1 for a linear layer."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def measure(module: nn.Module, source: Tensor, rounded: Tensor, centred: bool) -> Inputs:
    """The inputs of a module that is `measurable`.

    Args:
        module: The layer.
        source: Its inputs in the source.
        rounded: The same pictures, in the same order, through what is rounded already.
        centred: Products about the means: what is left to the weights where the bias takes care of the means.
    """
    weight = cast(Tensor, module.weight)
    groups, columns = groups_of(module), weight[0].numel()
    products, about = torch.zeros(groups, columns, columns), mean(module, rounded)
    for part in samples(module, rounded):  # (G, columns, samples)
        # subtracted before and not after: float32 products of large means would leave nothing of small deviations
        part = part - about[..., None] * centred
        products += part @ part.mT
    return Inputs(products, mean(module, source), about)


def mean(module: nn.Module, inputs: Tensor) -> Tensor:
    """Mean of all samples: (G, columns)."""
    total, count = torch.zeros(1), 0
    for part in samples(module, inputs):
        total, count = total + part.sum(-1, dtype=torch.float64), count + part.shape[-1]
    return (total / count).float()


def samples(module: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """What each output is a product with: (G, columns, samples), a few pictures at a time."""
    if isinstance(module, nn.Linear):
        rows = inputs.reshape(-1, inputs.shape[-1])
        for part in rows[:: max(1, len(rows) // SAMPLES)].split(max(1, CHUNK // inputs.shape[-1])):
            yield part.T[None]
        return
    assert isinstance(module, nn.Conv2d)
    size = inputs[0].numel() * module.kernel_size[0] * module.kernel_size[1]
    for part in inputs.split(max(1, CHUNK // size)):
        padding = cast("tuple[int, int]", module.padding)
        unfolded = F.unfold(part, module.kernel_size, module.dilation, padding, module.stride)
        unfolded = unfolded[..., :: max(1, unfolded.shape[-1] * len(inputs) // SAMPLES)]
        yield unfolded.unflatten(1, (module.groups, -1)).permute(1, 2, 0, 3).flatten(2)
