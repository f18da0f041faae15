"""What templates and coefficients look like inside: the diagnostics of RECAST's Figures 6, 9 and 10.

A value that is undefined (a distance in a bank of one template, a similarity in a bank of one layer) is None.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recast_cli.engine.base import Base

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
            frobenius=template_distance(templates := base.templates(bank)),
            entropy=template_entropy(templates),
            max_relative_error=max(base.errors[module]["relative_error"] for module in bank.modules),
            coefficient_similarity=similarity([base.coefficients(module) for module in bank.modules]),
        )
        for bank in base.layout.banks
    ]


def template_distance(templates: Tensor) -> float | None:
    """1/(n(n-1)) * sum_{i<j} |T_i - T_j|_F of templates (n, *shape); None for n = 1."""
    count = len(templates)
    if count < 2:
        return None
    flat = templates.reshape(count, -1).double()
    return float(sum((flat[i] - flat[j]).norm() for i in range(count) for j in range(i + 1, count))) / (
        count * (count - 1)
    )


def template_entropy(templates: Tensor) -> float | None:
    """Mean entropy (nats) of the normalised singular values of each template, seen as (out, everything else).

    None where every template is zero.
    """
    entropies = []
    for template in templates:
        values = torch.linalg.svdvals(template.reshape(len(template), -1).double())
        if values.sum() > 0:
            shares = values / values.sum()
            entropies.append(float(torch.special.entr(shares).sum()))
    return sum(entropies) / len(entropies) if entropies else None


def similarity(vectors: list[Tensor]) -> Matrix | None:
    """Cosine similarity of every two flattened vectors; None for fewer than two, or beside a zero vector."""
    if len(vectors) < 2:
        return None
    flat = torch.stack([vector.reshape(-1).double() for vector in vectors])
    norms = flat.norm(dim=1)
    cosines = (flat @ flat.T / (norms[:, None] * norms)).clamp(-1, 1)
    return [
        [float(cosines[i, j]) if norms[i] * norms[j] > 0 else None for j in range(len(flat))] for i in range(len(flat))
    ]


@dataclass(frozen=True)
class ModuleChange:
    """Coefficients of one module in a task beside the base's, both (K, n), and |C_task - C_base|_F."""

    module: str
    coefficients: list[list[float]]
    base: list[list[float]]
    moved: float


def compare_to_base(base: Base, vector: Tensor) -> list[ModuleChange]:
    """What a task changed, module by module, in layout order."""
    changes = []
    for module, (place, shape) in base.layout.slices().items():
        now, before = vector[place].reshape(shape), base.coefficients(module)
        changes.append(ModuleChange(module, now.tolist(), before.tolist(), float((now - before).double().norm())))
    return changes
