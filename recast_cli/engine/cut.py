"""Weights cut in two, a part and the rest, each with a coefficient of its own; the file holds the weight once.

W = r (T - part(T)) + p part(T), which is T where r = p = 1. The part is known from T alone:

* `means`: of a kernel with a window, the mean over it. The rest sees edges, the part blurs.
* `directions`: of a linear layer, what it makes of one direction v of its inputs: part(T) = T v v^T, of rank one, where
  v is nearly the direction that the weight stretches most (`direction`).

`docs/results.md` says what cutting gains.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 2
"""Of the power method. The direction need not be the singular one, but it has to be the same on every machine, so they
are few and always as many; each reads the weight twice."""


def with_parts(templates: Tensor, cut: str | None) -> Tensor:
    """Templates (m, *shape), and where they are cut their parts after them: (2m, *shape)."""
    if cut is None:
        return templates
    if cut == "means":
        parts = templates.mean(tuple(range(3, templates.ndim)), keepdim=True).expand_as(templates)
    else:
        v = torch.stack([direction(template) for template in templates])[..., None]
        parts = templates @ v @ v.mT
    return torch.cat([templates, parts])


def direction(weight: Tensor, steps: int = STEPS) -> Tensor:
    """v (inputs,) of a weight (outputs, inputs): `steps` of the power method on W^T W, from the longest row of W.

    Of length 1 after any step; of zeros it is zeros.
    """
    v = weight[weight.square().sum(1).argmax()]
    for _ in range(steps):
        v = (weight @ v) @ weight
        v = v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
    return v


def uncut(coefficients: Tensor) -> Tensor:
    """What templates and their parts count where the coefficients are of what is cut: (..., 2m) -> (..., 2m).

    The first m coefficients r are of the rests, the others, p, of the parts. r (T - part) + p part is
    r T + (p - r) part: so the weight is T to the bit where both are 1.
    """
    rest, part = coefficients.chunk(2, -1)
    return torch.cat([rest, part - rest], -1)
