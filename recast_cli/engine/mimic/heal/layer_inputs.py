"""What a linear layer or a convolution multiplies its weight with."""

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.architecture.modules import is_plain

CHUNK = 2**24
"""Values of unfolded inputs that are in memory at a time."""
SAMPLES = 2**14
"""Samples that a layer's inputs are judged by, evenly spaced: twenty for each of 800 columns."""


def measurable(module: nn.Module) -> bool:
    """Whether `samples` knows what the module does: a plain linear layer, or a plain two-dimensional convolution."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) and is_plain(module)


def groups_of(module: nn.Module) -> int:
    """G: the groups of a convolution, 1 for a linear layer."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def samples(module: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """What each output is a product with: (G, columns, samples), a few images at a time."""
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
