"""Ways to cut a tensor into parts of the same shape that add up to it, or to some of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor


def masks(tensor: Tensor, dim: int, pieces: int) -> list[Tensor]:
    """`pieces` tensors, each with its share of the rows (dim 0) or columns (dim 1), zero elsewhere."""
    found = []
    for part in range(pieces):
        mask = torch.zeros_like(tensor)
        place = slice(part * tensor.shape[dim] // pieces, (part + 1) * tensor.shape[dim] // pieces)
        mask[(slice(None),) * dim + (place,)] = 1
        found.append(tensor * mask)
    return found


def bands(tensor: Tensor, pieces: int) -> list[Tensor]:
    """Parts of equal energy from the largest singular values to the smallest."""
    u, s, vt = torch.linalg.svd(tensor, full_matrices=False)
    energy = s.square().cumsum(0) / s.square().sum()
    cuts = [0, *(int((energy < part / pieces).sum()) + 1 for part in range(1, pieces)), len(s)]
    return [(u[:, a:b] * s[a:b]) @ vt[a:b] for a, b in itertools.pairwise(cuts)]


def top(tensor: Tensor, rank: int = 1) -> list[Tensor]:
    """What the largest singular values make of the tensor; LoRA-XS of rank 1 moves it, too."""
    u, s, vt = torch.linalg.svd(tensor, full_matrices=False)
    return [(u[:, :rank] * s[:rank]) @ vt[:rank]]


def top_and_rest(tensor: Tensor, rank: int = 1) -> list[Tensor]:
    """The part of the largest singular values, and what is left."""
    return [*top(tensor, rank), tensor - top(tensor, rank)[0]]


def along(vector: Tensor, tensor: Tensor) -> list[Tensor]:
    """What the tensor makes of one direction of its inputs, and what is left."""
    vector = vector / vector.norm()
    part = torch.outer(tensor @ vector, vector)
    return [part, tensor - part]


def direction(tensor: Tensor, steps: int) -> Tensor:
    """Of the tensor's inputs, by the power method on W^T W from the longest row of W."""
    vector = tensor[tensor.square().sum(1).argmax()]
    for _ in range(steps):
        vector = (tensor @ vector) @ tensor
        vector = vector / vector.norm()
    return vector


def stretched(tensor: Tensor) -> list[Tensor]:
    """Along nearly the direction that is stretched most."""
    return along(direction(tensor, 2), tensor)


def after(steps: int) -> Callable[[Tensor], list[Tensor]]:
    """The same after another number of steps of the power method; after none it is the longest row."""
    return lambda tensor: along(direction(tensor, steps), tensor)


def at_random(tensor: Tensor) -> list[Tensor]:
    """Along a random direction."""
    generator = torch.Generator().manual_seed(tensor.shape[1])
    return along(torch.randn(tensor.shape[1], generator=generator), tensor)


def mean_row(tensor: Tensor) -> list[Tensor]:
    """Along the mean of the rows."""
    return along(tensor.mean(0), tensor)


def four_and_rest(tensor: Tensor) -> list[Tensor]:
    """The part of the four largest singular values, and what is left."""
    return top_and_rest(tensor, 4)


def whole(tensor: Tensor) -> list[Tensor]:
    """One piece."""
    return [tensor]


def query_and_value(tensor: Tensor) -> list[Tensor]:
    """q and v of a fused weight; scaling k does what scaling q does."""
    return masks(tensor, 0, 3)[::2]


def mean(tensor: Tensor) -> list[Tensor]:
    """The mean of every kernel over its window."""
    return frequencies(tensor)[:1]


def beside_mean(tensor: Tensor) -> list[Tensor]:
    """The weight, and the mean of every kernel over its window."""
    return [tensor, frequencies(tensor)[0]]


def beside_mirror(tensor: Tensor) -> list[Tensor]:
    """The weight, and the weight with what is left beside its mean turned round: as orthogonal as mean and rest."""
    return [tensor, 2 * frequencies(tensor)[0] - tensor]


def signs(tensor: Tensor) -> list[Tensor]:
    """What excites and what inhibits."""
    return [tensor.clamp_min(0), tensor.clamp_max(0)]


def frequencies(tensor: Tensor) -> list[Tensor]:
    """The mean of every kernel over its window, and what is left."""
    mean = tensor.mean((2, 3), keepdim=True).expand_as(tensor)
    return [mean, tensor - mean]


def centre(tensor: Tensor) -> list[Tensor]:
    """The middle of every kernel's window, and what is around it."""
    middle = torch.zeros_like(tensor)
    y, x = (size // 2 for size in tensor.shape[2:])
    middle[..., y, x] = tensor[..., y, x]
    return [middle, tensor - middle]


def directions(tensor: Tensor) -> list[Tensor]:
    """The mean of every kernel over its window, what changes along one axis alone, and what is left."""
    mean = tensor.mean((2, 3), keepdim=True).expand_as(tensor)
    rows, columns = tensor.mean(3, keepdim=True) - mean, tensor.mean(2, keepdim=True) - mean
    return [mean, rows + columns, tensor - mean - rows - columns]
