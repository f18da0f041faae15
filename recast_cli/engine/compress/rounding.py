"""Rounding one tensor: to the nearest path or point, or with error feedback where it is known what its errors do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recast_cli.engine.compress.code import Fixed, Stored, deflated
from recast_cli.engine.compress.curvature import Curvature, squares
from recast_cli.engine.compress.grid import SMALLEST
from recast_cli.engine.compress.matrices import matrices_of
from recast_cli.engine.compress.steps import Steps, curved_steps, plain_steps
from recast_cli.engine.compress.trellis import follow, halves, rounded


def to_steps(name: str, tensor: Tensor, step: float, curvature: Curvature | None = None) -> Stored:
    """A tensor as integers of as many bits as they need, with steps so many times those of `curved_steps`.

    Without a curvature they are those of `plain_steps`, and no error is fed back.
    """
    weights = matrices_of(name, tensor)
    steps = steps_of(weights, curvature).times(step)
    spread = steps.spread()
    codes = on_trellis(weights, spread)[0] if curvature is None else in_turns(weights, spread, curvature)
    return deflated(name, tuple(tensor.shape), codes, steps)


def steps_of(weights: Tensor, curvature: Curvature | None) -> Steps:
    """The steps of matrices, before they are scaled."""
    return plain_steps(weights) if curvature is None else curved_steps(curvature)


def to_bits(name: str, tensor: Tensor, code: Fixed, curvature: Curvature | None = None) -> dict[str, Tensor]:
    """What is stored of a tensor in equally many bits a value; as of `to_steps`."""
    if curvature is None:
        return code.encode(name, tensor)
    weights, grid = matrices_of(name, tensor), code.grid
    diagonal = squares(curvature.columns)
    scales = grid.search(weights, diagonal[:, None])
    if not curvature.whole:
        return code.store(name, grid.encode(weights, scales), scales)
    steps = grid.spread(scales, code.columns).clamp_min(SMALLEST)
    # with steps that do not know of it, what counts most has to come first, while there is most to make up for it
    order = diagonal.argsort(-1, descending=True)
    sorted_root = curvature.sorted(order).root
    across = order[:, None].expand_as(weights)

    def point(_: int, value: Tensor) -> Tensor:
        return (value + grid.centre).round().clamp(0, 2 * grid.centre) - grid.centre

    points = feed_back(weights.gather(-1, across), sorted_root, steps.gather(-1, across), point)
    codes = torch.empty_like(points).scatter_(-1, across, points + grid.centre)
    return code.store(name, codes, scales)


def in_turns(weights: Tensor, steps: Tensor, curvature: Curvature) -> Tensor:
    """Codes as of `on_trellis`, with what some rows lose made up for in later ones, as GPTQ does for columns."""
    left, codes = weights.clone(), torch.empty_like(weights)
    root = curvature.root if curvature.whole else None
    for rows, later, _, shares in curvature.turns:
        codes[:, rows], half = on_trellis(left[:, rows], steps[:, rows], root)
        off = (codes[:, rows] + half) * steps[:, rows] - left[:, rows]
        left[:, later] -= shares @ off
    return codes


def on_trellis(weights: Tensor, steps: Tensor, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes of matrices on the best path of a trellis, and what it adds to them: 0 or 1/2.

    Arguments as of `follow`. Both are (n, rows, columns), float32.
    """
    odd = follow(weights, steps, root)
    half = halves(odd)
    if root is None:
        return rounded(weights / steps, half, odd), half
    points = feed_back(
        weights,
        root,
        steps,
        lambda column, value: half[..., column] + rounded(value, half[..., column], odd[..., column]),
    )
    return points - half, half


def feed_back(weights: Tensor, root: Tensor, steps: Tensor, point: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Points of matrices, rounded column by column so that d H d^T stays small for every row d of errors.

    GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323): what is lost in a column, over its own entry of U, is taken from
    the columns after it in the proportion of U's row.

    Args:
        weights: (n, rows, columns).
        root: U, upper triangular, with U^T U = H^-1: (n, columns, columns).
        steps: Of every value, (n, rows, columns), all above 0.
        point: From a column and its values over their steps, (n, rows), to where they are rounded to, in steps.

    Returns:
        (n, rows, columns), float32, in steps.
    """
    left = weights.float().clone()
    points = torch.empty_like(left)
    for column in range(left.shape[-1]):
        value, step = left[..., column], steps[..., column]
        points[..., column] = point(column, value / step)
        lost = (value - points[..., column] * step) / root[:, column, column, None]
        left[..., column + 1 :] -= lost[..., None] * root[:, None, column, column + 1 :]
    return points
