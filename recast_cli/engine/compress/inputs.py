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
POSITIONS = 784
"""Positions of a picture that a convolution is looked at; there are many more in early layers, all alike."""


@dataclass
class Inputs:
    """Sums over samples of a layer's inputs, as they are in the source (x) and after rounding what stands before (y).

    Attributes:
        own: sum of y y^T, (G, columns, columns).
        cross: sum of x y^T, of the same shape.
        source: sum of x, (G, columns).
        rounded: sum of y, of the same shape.
        count: Samples.
    """

    own: Tensor
    cross: Tensor
    source: Tensor
    rounded: Tensor
    count: int

    def centred(self) -> Inputs:
        """The same about the means: what is left to the weights where the bias takes care of the means."""
        own = self.own - self.rounded[..., None] * self.rounded[:, None] / self.count
        cross = self.cross - self.source[..., None] * self.rounded[:, None] / self.count
        return Inputs(own, cross, self.source, self.rounded, self.count)


def measurable(module: nn.Module) -> bool:
    """Whether `measure` knows what the module does: a plain linear layer, or a plain two-dimensional convolution."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    plain = isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward
    return plain and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def groups_of(module: nn.Module) -> int:
    """G: the groups of a convolution, 1 for a linear layer."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def measure(module: nn.Module, source: Tensor, rounded: Tensor) -> Inputs:
    """The inputs of a module that is `measurable`: `source` and `rounded` are the same pictures, in the same order."""
    weight = cast(Tensor, module.weight)
    groups, columns = groups_of(module), weight[0].numel()
    own = torch.zeros(groups, columns, columns)
    found = Inputs(own, own.clone(), torch.zeros(groups, columns), torch.zeros(groups, columns), 0)
    for x, y in zip(samples(module, source), samples(module, rounded), strict=True):  # (G, columns, samples)
        found.own += y @ y.mT
        found.cross += x @ y.mT
        found.source += x.sum(-1)
        found.rounded += y.sum(-1)
        found.count += x.shape[-1]
    return found


def samples(module: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """What each output is a product with: (G, columns, samples), a few pictures at a time."""
    if isinstance(module, nn.Linear):
        for part in inputs.reshape(-1, inputs.shape[-1]).split(max(1, CHUNK // inputs.shape[-1])):
            yield part.T[None]
        return
    assert isinstance(module, nn.Conv2d)
    size = inputs[0].numel() * module.kernel_size[0] * module.kernel_size[1]
    for part in inputs.split(max(1, CHUNK // size)):
        padding = cast("tuple[int, int]", module.padding)
        unfolded = F.unfold(part, module.kernel_size, module.dilation, padding, module.stride)
        unfolded = unfolded[..., :: max(1, unfolded.shape[-1] // POSITIONS)]
        yield unfolded.unflatten(1, (module.groups, -1)).permute(1, 2, 0, 3).flatten(2)
