"""One bank fitted to what its layers' weights do, instead of to the weights themselves."""

import torch
from torch import Tensor

from recast_cli.engine.mimic.decompose.solution import Solution

ROUNDS, STEPS = 150, 5
"""Rounds of templates and coefficients by turns, and steps of conjugate gradients in each."""
ENOUGH = 0.002
"""Rounds end when one lowers the loss by less than this share."""
RIDGE = 1e-8
"""Added to the diagonal of the coefficients' equations, as a share of its mean."""


def fit_bank(weights: Tensor, start: Solution, inputs: Tensor, outputs: Tensor) -> Solution:
    """Lower sum over layers of 1/2 tr(D^T A D B), D = W - sum_i c_i T_i, from a first solution.

    Either of templates and coefficients has linear equations where the other is fixed, and they are solved by turns.
    The templates' are sum_l c_li A_l (sum_j c_lj T_j) B_l = sum_l c_li A_l W_l B_l; they are too many to be written
    down, so conjugate gradients take steps towards their solution, each of which lowers the loss.

    Args:
        weights: (layers, G, rows, columns), of the source.
        start: Templates (n, G, rows, columns), coefficients (layers, K, n).
        inputs: B of every layer, (layers, G, columns, columns), positive definite.
        outputs: A of every layer, (layers, G, rows, rows), positive definite.

    Returns:
        A solution of no larger loss. The K sets of coefficients are equal.
    """
    templates, mixing = reduced(start.templates, start.coefficients.mean(1))
    wanted = outputs @ weights @ inputs
    before = float(loss(weights, templates, mixing, inputs, outputs))
    for _ in range(ROUNDS):
        templates = fit_templates(templates, mixing, wanted, inputs, outputs)
        mixing = torch.stack(
            [solve_coefficients(templates, *each) for each in zip(wanted, inputs, outputs, strict=True)]
        )
        after = float(loss(weights, templates, mixing, inputs, outputs))
        if after > (1 - ENOUGH) * before:
            break
        before = after
    coefficients = mixing[:, None].expand_as(start.coefficients).contiguous()
    return Solution(templates, coefficients.to(start.coefficients.dtype))


def loss(weights: Tensor, templates: Tensor, mixing: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """sum over layers of 1/2 tr(D^T A D B); mixing (layers, n)."""
    off = weights - torch.tensordot(mixing, templates, dims=1)
    return 0.5 * (off * (outputs @ off @ inputs)).sum()


def reduced(templates: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """The same mixtures in a basis in which as many layers as there are templates have one template each.

    Their equations then nearly fall apart, layer by layer, which is what `fit_templates` is quick at. The layers are
    chosen by Gram-Schmidt with pivots.
    """
    rest, rows = mixing.double().clone(), []
    for _ in range(len(templates)):
        norms = rest.square().sum(1)
        rows.append(int(norms.argmax()))
        if float(norms.max()) < torch.finfo(torch.float32).eps:  # some template is a mixture of others
            return templates, mixing
        pivot = rest[rows[-1]] / norms.max().sqrt()
        rest = rest - torch.outer(rest @ pivot, pivot)
    basis = mixing.double()[rows]
    changed = torch.linalg.solve(basis, mixing.double(), left=False)
    return torch.tensordot(basis.to(templates), templates, dims=1), changed.to(mixing)


def fit_templates(templates: Tensor, mixing: Tensor, wanted: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Some steps of conjugate gradients for the templates.

    They are preconditioned as if the layers that take a template had one curvature: the mean of theirs, by the squares
    of what they take.
    """

    def product(each: Tensor) -> Tensor:
        return torch.tensordot(mixing.T, outputs @ torch.tensordot(mixing, each, dims=1) @ inputs, dims=1)

    taken = mixing.T.square()
    total = taken.sum(1, keepdim=True).clamp_min(torch.finfo(taken.dtype).tiny)  # of a template that no layer takes
    behind = inverse(torch.tensordot(taken / total, inputs, dims=1))
    before = inverse(torch.tensordot(taken / total, outputs, dims=1)) / total[..., None, None]
    residual = torch.tensordot(mixing.T, wanted, dims=1) - product(templates)
    direction = before @ residual @ behind
    height = (residual * direction).sum()
    for _ in range(STEPS):
        along = product(direction)
        curve = (direction * along).sum()
        if not curve > 0:  # solved
            break
        step = height / curve
        templates, residual = templates + step * direction, residual - step * along
        scaled = before @ residual @ behind
        height, old = (residual * scaled).sum(), height
        direction = scaled + height / old * direction
    return templates


def inverse(factors: Tensor) -> Tensor:
    """Of positive definite matrices (n, G, m, m); computed in float64."""
    return torch.cholesky_inverse(torch.linalg.cholesky(factors.double())).to(factors)


def solve_coefficients(templates: Tensor, wanted: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """The coefficients (n,) of one layer: least squares in the layer's own metric."""
    seen = (outputs @ templates @ inputs).flatten(1).double()
    flat = templates.flatten(1).double()
    equations, target = seen @ flat.T, flat @ wanted.flatten().double()
    ridge = RIDGE * equations.diagonal().mean() * torch.eye(len(equations), device=equations.device)
    return torch.linalg.solve(equations + ridge, target).to(templates.dtype)
