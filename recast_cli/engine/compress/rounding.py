"""Rounding that minds what a layer's inputs are like: the error of its outputs is kept small, not that of its weights.

With inputs X (columns, samples) of a layer of weights W, |(W - Q) X|^2 = sum over rows of r H r^T, where r is a row of
W - Q and H = X X^T. Rows are independent. Three steps, each of which can only lower the error of a row:

1. Error feedback (GPTQ, Frantar et al., ICLR 2023, arXiv:2210.17323): column by column, what rounding takes from a
   value is given to those that are still to be rounded, in the proportion that H asks for.
2. Scales by least squares for the codes as they are.
3. Coordinate descent: each code again, with all the others fixed (QuantEase, Behdin et al., arXiv:2309.01885).

All tensors have a leading dimension G: 1, or the groups of a convolution, which see different inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recast_cli.engine.compress.grid import SMALLEST, Grid, stored

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean; the paper's value."""
PASSES = 2
"""Of scales and codes, after the error feedback."""


def shrunk(products: Tensor, pictures: int) -> Tensor:
    """H for `round_weights` from products of inputs, (G, columns, columns), in float64.

    Samples of one picture are alike, and a few hundred pictures do not settle all products of hundreds of columns. So
    H is drawn to its diagonal by columns / (columns + pictures), as covariances are that few samples make (Ledoit and
    Wolf 2004, doi:10.1016/S0047-259X(03)00096-4), and has a little more on it, so that it can be inverted.
    """
    products = products.double()
    diagonal = products.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    extra = torch.where(mean > 0, DAMPING * mean, torch.ones_like(mean))  # inputs that are all 0 decide nothing
    share = products.shape[-1] / (products.shape[-1] + pictures)
    return (1 - share) * products + torch.diag_embed(share * diagonal + extra)


def round_weights(weights: Tensor, hessian: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Codes and scales of a layer.

    Args:
        weights: (G, rows, columns).
        hessian: (G, columns, columns), positive definite; see `shrunk`.
        grid: Bits and group size.

    Returns:
        Codes (G, rows, columns) and scales (G, rows, groups), float32. The error of no row is larger than that of
        rounding to the nearest with the scales of `Grid.search`.
    """
    weights, hessian = weights.float(), hessian.double()
    importance = hessian.diagonal(dim1=-2, dim2=-1).float()[:, None]
    scales = grid.search(weights, importance)
    plain = grid.search(weights)
    start = grid.encode(weights, plain)
    codes, scales = better(
        weights, hessian.float(), grid, (start, plain), (feed_back(weights, hessian, grid, scales), scales)
    )
    hessian = hessian.float()
    for _ in range(PASSES):
        codes, scales = better(
            weights, hessian, grid, (codes, scales), (codes, fit_scales(weights, hessian, grid, codes))
        )
        codes, scales = better(
            weights, hessian, grid, (codes, scales), (descend(weights, hessian, grid, codes, scales), scales)
        )
    return codes, scales


def output_error(weights: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """r H r^T of every row r of `weights` - `kept`: (G, rows)."""
    off = weights - kept
    return ((off @ hessian) * off).sum(-1)


def better(
    weights: Tensor, hessian: Tensor, grid: Grid, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Row by row, whichever codes and scales make the smaller error; ties go to the first."""
    first, second = (output_error(weights, hessian, grid.decode(*each)) for each in (one, other))
    wins = (second < first)[..., None]
    return torch.where(wins, other[0], one[0]), torch.where(wins, other[1], one[1])


def feed_back(weights: Tensor, hessian: Tensor, grid: Grid, scales: Tensor) -> Tensor:
    """Codes by error feedback, columns of large H first (GPTQ's order), scales as given."""
    columns = weights.shape[-1]
    order = hessian.diagonal(dim1=-2, dim2=-1).argsort(-1, descending=True)  # (G, columns)
    across = order[:, None].expand_as(weights)
    left = weights.gather(-1, across)
    steps = grid.spread(scales, columns).expand_as(weights).gather(-1, across).clamp_min(SMALLEST)
    sorted_rows = hessian.gather(1, order[..., None].expand_as(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(sorted_rows.gather(2, order[:, None].expand_as(hessian))))
    factor = torch.linalg.cholesky(inverse, upper=True).float()  # (G, columns, columns)
    codes = torch.empty_like(left)
    for column in range(columns):
        value, step = left[..., column], steps[..., column]
        code = (value / step + grid.centre).round_().clamp_(0, 2 * grid.centre)
        codes[..., column] = code
        lost = (value - (code - grid.centre) * step) / factor[:, column, column, None]
        left[..., column + 1 :] -= lost[..., None] * factor[:, None, column, column + 1 :]
    return torch.empty_like(codes).scatter_(-1, across, codes)


def fit_scales(weights: Tensor, hessian: Tensor, grid: Grid, codes: Tensor) -> Tensor:
    """The scales (G, rows, groups) that make the error least for these codes, as float16 holds them.

    With v_g the codes of a group (less the centre, 0 elsewhere) the row is sum_g s_g v_g, and the best s solves
    sum_h (v_g H v_h) s_h = v_g H w.
    """
    columns = weights.shape[-1]
    points = codes - grid.centre
    gram = []
    for start in range(0, columns, grid.group):
        part = slice(start, start + grid.group)
        gram.append(grid.cut((points[..., part] @ hessian[:, part]) * points).sum(-1))
    matrix = torch.stack(gram, -2).double()  # (G, rows, groups, groups)
    wanted = grid.cut((weights @ hessian) * points).sum(-1).double()
    ridge = 1e-6 * matrix.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(1e-30)
    identity = torch.eye(matrix.shape[-1], dtype=torch.float64)
    return stored(torch.linalg.solve(matrix + ridge * identity, wanted).float().clamp_min(0))


def descend(weights: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, scales: Tensor) -> Tensor:
    """Each code in turn, with all the others fixed: the nearest to where the error of its row is least."""
    columns = weights.shape[-1]
    steps = grid.spread(scales, columns).expand_as(weights).clamp_min(SMALLEST)
    codes = codes.clone()
    pull = (weights - grid.decode(codes, scales)) @ hessian  # half the negative gradient
    for column in range(columns):
        step, own = steps[..., column], hessian[:, column, column, None]
        move = (pull[..., column] / (own * step)).round_()
        after = (codes[..., column] + move).clamp_(0, 2 * grid.centre)
        change = (after - codes[..., column]) * step
        codes[..., column] = after
        pull -= change[..., None] * hessian[:, column, None]
    return codes
