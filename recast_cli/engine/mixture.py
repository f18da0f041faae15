"""Equation 1 of RECAST: W[l,m] = (1/K) sum_k sum_i C[l,m,k,i] T[g,i]."""

from __future__ import annotations

from torch import Tensor

from recast_cli.engine.cut import uncut


def mix(coefficients: Tensor, templates: Tensor, cut: bool = False) -> Tensor:
    """The weight of one module.

    Args:
        coefficients: (K, n).
        templates: (n, *shape), the module's bank, as of `Base.templates`.
        cut: Whether they are tensors and their parts, and the coefficients of rests and parts (engine/cut.py).

    Returns:
        (*shape). The K sets are averaged first, which the equation allows as it is linear in C; with an identity
        row in every set the result equals the template to the bit.
    """
    counts = coefficients.mean(-2)
    if cut:
        counts = uncut(counts)
    if len(counts) == 1:  # nothing to sum: a product with a vector takes ten times as long on a graphics card
        return counts[0] * templates[0]
    return (counts @ templates.flatten(1)).view(templates.shape[1:])


def restore(coefficients: Tensor, templates: Tensor) -> Tensor:
    """`mix`, but a module whose weight is one template gets that template bit by bit.

    Adding nothing to a negative zero makes it a positive one.

    Args:
        coefficients: (K, n).
        templates: (n, *shape).

    Returns:
        (*shape), perhaps a view of a template.
    """
    mean = coefficients.mean(-2)
    chosen = mean.nonzero().flatten().tolist()
    alone = len(chosen) == 1 and mean[chosen[0]] == 1
    return templates[chosen[0]] if alone else mix(coefficients, templates)
