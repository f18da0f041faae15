"""Equation 1 of RECAST: W[l,m] = (1/K) sum_k sum_i C[l,m,k,i] T[g,i]."""

from __future__ import annotations

from torch import Tensor


def mix(coefficients: Tensor, templates: Tensor) -> Tensor:
    """The weight of one module.

    Args:
        coefficients: (K, n).
        templates: (n, *shape), the module's bank.

    Returns:
        (*shape). The K sets are averaged first, which the equation allows as it is linear in C; with an identity
        row in every set the result equals the template to the bit.
    """
    return (coefficients.mean(0) @ templates.flatten(1)).view(templates.shape[1:])
