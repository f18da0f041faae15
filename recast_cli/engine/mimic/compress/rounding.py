"""Rounding tensors: to the nearest path or point, or with error feedback where it is known what their errors do."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recast_cli.engine.base.codec.code import Code, Fixed, Stored, deflated, round_to_nearest
from recast_cli.engine.base.codec.grid import SMALLEST
from recast_cli.engine.base.codec.steps import Steps
from recast_cli.engine.base.codec.trellis import BLOCK, follow, halves, rounded
from recast_cli.engine.mimic.compress.fisher import Curvature, squares
from recast_cli.engine.mimic.compress.matrices import matrices_of
from recast_cli.engine.mimic.compress.steps import curved_steps, plain_steps


def to_steps(tensors: Mapping[str, Tensor], step: float, curves: Mapping[str, Curvature]) -> dict[str, Stored]:
    """Tensors as integers of as many bits as they need, with steps so many times those of `curved_steps`.

    Where there is no curvature they are those of `plain_steps`, and no error is fed back.

    Args:
        tensors: By name; with matrices of one size, and all with a curvature of one kind or none. Several small ones
            take hardly longer than one.
        step: Times those steps.
        curves: By name of a tensor.
    """
    weights = {name: matrices_of(name, tensor) for name, tensor in tensors.items()}
    steps = {name: steps_of(each, curves.get(name)).times(step) for name, each in weights.items()}
    several, spread = joined(list(weights.values())), joined([each.spread() for each in steps.values()])
    known = [curves[name] for name in tensors if name in curves]
    codes = in_turns(several, spread, known) if known else on_trellis(several, spread)[0]
    parts = codes.split([len(each) for each in weights.values()])
    return {
        name: deflated(name, tuple(tensor.shape), part, steps[name])
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def steps_of(weights: Tensor, curvature: Curvature | None) -> Steps:
    """The steps of matrices, before they are scaled."""
    return plain_steps(weights) if curvature is None else curved_steps(curvature)


def to_bits(curves: Mapping[str, Curvature], name: str, tensor: Tensor, code: Code) -> dict[str, Tensor]:
    """What is stored of a tensor in bits that are given; as of `to_steps`."""
    if name not in curves:
        return round_to_nearest(name, tensor, code)
    assert isinstance(code, Fixed), "only what is rounded has a curvature"
    weights, grid, curvature = matrices_of(name, tensor), code.grid, curves[name]
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


def in_turns(weights: Tensor, steps: Tensor, curves: Sequence[Curvature]) -> Tensor:
    """Codes as of `on_trellis`, with what some rows lose made up for in later ones, as GPTQ does for columns.

    The curves are those of one matrix after the other, n in all, of one kind.
    """
    left, codes = weights.clone(), torch.empty_like(weights)
    root = joined([each.root for each in curves]) if curves[0].whole else None
    for turns in zip(*(each.turns for each in curves), strict=True):
        rows, later = turns[0].rows, turns[0].later  # the same in all matrices
        codes[:, rows], half = on_trellis(left[:, rows], steps[:, rows], root)
        off = (codes[:, rows] + half) * steps[:, rows] - left[:, rows]
        left[:, later] -= joined([each.shares for each in turns]) @ off
    return codes


def joined(parts: list[Tensor]) -> Tensor:
    """Parts (n, ...) in one; of a single one no copy, which may be large."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


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
    columns = left.shape[-1]
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        lost = torch.empty(*left.shape[:2], last - first)
        for column in range(first, last):
            value, step = left[..., column], steps[..., column]
            points[..., column] = point(column, value / step)
            error = (value - points[..., column] * step) / root[:, column, column, None]
            left[..., column + 1 : last] -= error[..., None] * root[:, None, column, column + 1 : last]
            lost[..., column - first] = error
        left[..., last:] -= lost @ root[:, first:last, last:]
    return points
