"""Equation 1 of RECAST: W[l,m] = (1/K) sum_k sum_i C[l,m,k,i] T[g,i]."""

import torch
from torch import Tensor


def mix(coefficients: Tensor, templates: Tensor, means: bool = False) -> Tensor:
    """The weight of one module.

    Args:
        coefficients: (K, n).
        templates: (n, *shape), the module's bank, as of `Base.templates`.
        means: Whether the bank's templates are cut kernels, see `uncut`.

    Returns:
        (*shape). The K sets are averaged first, which the equation allows as it is linear in C; with an identity
        row in every set the result equals the template to the bit.

    Raises:
        RuntimeError: n of the coefficients is another than that of the templates.

    Example:
        >>> templates = torch.randn(2, 64, 32)  # two linear layers 32 -> 64
        >>> mix(torch.tensor([[0.5, 2.0]]), templates).shape  # K = 1, n = 2
        torch.Size([64, 32])
        >>> torch.equal(mix(torch.tensor([[0.0, 1.0]]), templates), templates[1])
        True
    """
    counts = averaged(coefficients, means)
    if len(counts) == 1:  # nothing to sum: a product with a vector takes ten times as long on a graphics card
        return counts[0] * templates[0]
    return (counts @ templates.flatten(1)).view(templates.shape[1:])


def restore(coefficients: Tensor, templates: Tensor, means: bool = False) -> Tensor:
    """`mix`, but a module whose weight is one template gets that template bit by bit.

    Adding nothing to a negative zero makes it a positive one.

    Returns:
        (*shape), perhaps a view of a template.
    """
    mean = averaged(coefficients, means)
    chosen = mean.nonzero().flatten().tolist()
    alone = len(chosen) == 1 and mean[chosen[0]] == 1
    return templates[chosen[0]] if alone else mix(coefficients, templates, means)


def averaged(coefficients: Tensor, means: bool) -> Tensor:
    """What each of the tensors that `mix` is given counts: coefficients (..., K, n) -> (..., n)."""
    mean = coefficients.mean(-2)
    return uncut(mean) if means else mean


def with_means(kernels: Tensor) -> Tensor:
    """Kernels (m, out, in, *window), and after them their means over the window: (2m, out, in, *window)."""
    means = kernels.mean(tuple(range(3, kernels.ndim)), keepdim=True)
    return torch.cat([kernels, means.expand_as(kernels)])


def uncut(coefficients: Tensor) -> Tensor:
    """What kernels and their means count where the coefficients are of kernels cut in two: (..., 2m) -> (..., 2m).

    The first m coefficients r are of T - mean(T), what a kernel sees of edges, the others, m, of mean(T), what it
    blurs. r (T - mean(T)) + m mean(T) is r T + (m - r) mean(T): so the weight is T to the bit where both are 1.
    """
    rest, mean = coefficients.chunk(2, -1)
    return torch.cat([rest, mean - rest], -1)
