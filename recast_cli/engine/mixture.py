"""Equation 1 of RECAST: W[l,m] = (1/K) sum_k sum_i C[l,m,k,i] T[g,i]."""

from __future__ import annotations

import torch
from torch import Tensor

from recast_cli.engine.layout import Bank


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


def restore(coefficients: Tensor, templates: Tensor) -> Tensor:
    """`mix`, but a module whose weight is one template gets that template bit by bit.

    Adding nothing to a negative zero makes it a positive one.

    Args:
        coefficients: (K, n).
        templates: (n, *shape).

    Returns:
        (*shape), perhaps a view of a template.
    """
    mean = coefficients.mean(0)
    chosen = mean.nonzero().flatten().tolist()
    return templates[chosen[0]] if len(chosen) == 1 and mean[chosen[0]] == 1 else mix(coefficients, templates)


def expanded(stored: Tensor, bank: Bank) -> Tensor:
    """All templates of a bank (n, *shape) out of those that its file holds (bank.stored, *shape)."""
    return with_means(stored) if bank.means else stored


def with_means(templates: Tensor) -> Tensor:
    """Templates (m, out, in, *kernel), and after them their means over the window: (2m, out, in, *kernel).

    A mean blurs, and what is left of a kernel without it sees edges alone. So the two coefficients of a kernel, 1 and 0
    for the source's, make a filter stronger, and sharper or softer.
    """
    means = templates.mean(tuple(range(3, templates.ndim)), keepdim=True)
    return torch.cat([templates, means.expand_as(templates)])
