"""What templates and coefficients look like inside: the diagnostics of RECAST's Figures 6, 9 and 10.

A value that is undefined (a distance in a bank of one template, a similarity in a bank of one layer) is None.
Whatever concerns coefficients alone does without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from recast_cli.engine.base.base import Base
    from recast_cli.engine.base.header import BaseHeader

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class BankDiagnosis:
    """One bank.

    Attributes:
        name: Of the bank; `group` its number, `modules` its modules in order of depth.
        frobenius: Mean distance of two templates, 1/(n(n-1)) * sum_{i<j} |T_i - T_j|_F as the paper prints it.
        entropy: Of the singular values, normalised to sum 1, in nats, averaged over the templates.
        max_relative_error: Largest relative Frobenius error of a module, as measured when the base was made.
        coefficient_similarity: Cosine similarity of the flattened coefficients of every two layers.
    """

    name: str
    group: int
    modules: tuple[str, ...]
    frobenius: float | None
    entropy: float | None
    max_relative_error: float
    coefficient_similarity: Matrix | None


def diagnose(base: Base) -> list[BankDiagnosis]:
    """Every bank of a base, in order of depth."""
    return [
        BankDiagnosis(
            name=bank.name,
            group=bank.group,
            modules=bank.modules,
            frobenius=template_distance(templates := base.stored(bank)),
            entropy=template_entropy(templates),
            max_relative_error=max(base.errors[module]["relative_error"] for module in bank.modules),
            coefficient_similarity=similarity([base.coefficients(module).flatten() for module in bank.modules]),
        )
        for bank in base.layout.banks
    ]


@dataclass(frozen=True)
class RoleDiagnosis:
    """All templates of one role and shape, across its banks: what is left to compare where a bank has one template.

    Attributes:
        role: What the modules are, e.g. `blocks.*.attn.qkv`; `shape` of each weight.
        banks: Names of its banks, in order of depth; `templates` of all of them.
        frobenius: Mean distance of two templates, as of a bank.
        similarity: Cosine similarity of every two templates.
    """

    role: str
    shape: tuple[int, ...]
    banks: tuple[str, ...]
    templates: int
    frobenius: float | None
    similarity: Matrix | None


def diagnose_roles(base: Base) -> list[RoleDiagnosis]:
    """Every role and shape of a base, in order of its first bank."""
    found = []
    for (role, shape), banks in base.layout.roles.items():
        products = inner_products([template for bank in banks for template in base.stored(bank)])
        lengths = products.diagonal()
        pairs = lengths[:, None] + lengths - 2 * products
        count = len(products)
        distance = float(pairs.clamp_min(0).sqrt().triu(1).sum()) / (count * (count - 1)) if count > 1 else None
        cosines = products / (lengths[:, None] * lengths).sqrt()
        matrix: Matrix = [[None if math.isnan(value) else value for value in row] for row in cosines.tolist()]
        names = tuple(bank.name for bank in banks)
        found.append(RoleDiagnosis(role, shape, names, count, distance, matrix if count > 1 else None))
    return found


def inner_products(templates: Sequence[Tensor]) -> Tensor:
    """<T_i, T_j> of every two templates: (n, n), float64."""
    import torch

    flat = [template.flatten() for template in templates]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for columns in zip(*(each.split(2**20) for each in flat), strict=True):  # in double, but not all at once
        part = torch.stack(columns).double()
        total += part @ part.T
    return total


def template_distance(templates: Tensor) -> float | None:
    """1/(n(n-1)) * sum_{i<j} |T_i - T_j|_F of templates (n, *shape); None for n = 1."""
    count = len(templates)
    if count < 2:
        return None
    pairs = combinations(templates.reshape(count, -1).double(), 2)
    return float(sum((one - other).norm() for one, other in pairs)) / (count * (count - 1))


def template_entropy(templates: Tensor) -> float | None:
    """Mean entropy (nats) of the normalised singular values of each template, seen as (out, everything else).

    None where every template is zero.
    """
    import torch

    entropies = []
    for template in templates:
        values = torch.linalg.svdvals(template.reshape(len(template), -1).double())
        if values.sum() > 0:
            shares = values / values.sum()
            entropies.append(float(torch.special.entr(shares).sum()))
    return sum(entropies) / len(entropies) if entropies else None


def similarity(vectors: Sequence[Iterable[float]]) -> Matrix | None:
    """Cosine similarity of every two vectors of one length; None for fewer than two, or beside a zero vector."""
    if len(vectors) < 2:
        return None
    plain = [[float(value) for value in vector] for vector in vectors]
    return [[cosine(one, other) for other in plain] for one in plain]


def cosine(one: list[float], other: list[float]) -> float | None:
    """Cosine of the angle between two vectors; None where one is zero."""
    norms = math.hypot(*one) * math.hypot(*other)
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return max(-1.0, min(1.0, product / norms)) if norms > 0 else None


@dataclass(frozen=True)
class ModuleChange:
    """Coefficients of one module in a task beside the base's, both (K, n), and |C_task - C_base|_F."""

    module: str
    coefficients: list[list[float]]
    base: list[list[float]]
    moved: float


def compare_to_base(base: BaseHeader, vector: Iterable[float]) -> list[ModuleChange]:
    """What a task changed, module by module, in layout order.

    Args:
        base: The task's base, or no more than its header.
        vector: The task's coefficients in layout order.
    """
    now, before = [float(value) for value in vector], base.mimicked()
    return [
        ModuleChange(
            module=module,
            coefficients=rows(now[place], templates),
            base=rows(before[place], templates),
            moved=math.dist(now[place], before[place]),
        )
        for module, (place, (_, templates)) in base.layout.slices().items()
    ]


def chosen_changes(
    names: Sequence[str], places: Sequence[tuple[int, int]], values: Sequence[float]
) -> list[ModuleChange]:
    """What a task that chose its coefficients changed, vector by vector: what is added, entry by entry, beside zeros.

    `names` are those of the base's dictionary, in its order; `places` and `values` are k pairs (vector, entry) and k.
    """
    by_name: dict[str, list[float]] = {}
    for (vector, _), value in sorted(zip(places, values, strict=True)):
        by_name.setdefault(names[vector], []).append(value)
    return [ModuleChange(name, [added], [[0.0] * len(added)], math.hypot(*added)) for name, added in by_name.items()]


def aligned(tasks: Sequence[tuple[Sequence[float], Sequence[tuple[int, int]] | None]]) -> list[list[float]]:
    """Coefficients of tasks of one base as vectors of one length, for `similarity`: by their place in the layout, or by
    what a task that chooses adds to m of those, and at places (vector, entry); with 0 where it moved nothing.
    """

    def named_by(vector: Sequence[float], places: Sequence[tuple[int, int]] | None) -> list[Any]:
        moved = len(vector) - len(places or ())
        return [*((place, moved, places is None) for place in range(moved)), *(places or ())]

    named = [dict(zip(named_by(vector, places), vector, strict=True)) for vector, places in tasks]
    every = {place: None for each in named for place in each}
    return [[each.get(place, 0.0) for place in every] for each in named]


def rows(values: list[float], width: int) -> list[list[float]]:
    """`values` as a matrix, row by row."""
    return [values[start : start + width] for start in range(0, len(values), width)]
