"""Steps for a tensor that is to be rounded: from its values alone, or from what images say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recast_cli.engine.mimic.compress.fisher import Curvature
from recast_cli.engine.base.codec.steps import OCTAVE, Steps

RANGE = 64
"""No row or column of weights counts as more than so many times larger or smaller than the mean one."""


def near(rows: Tensor, columns: Tensor) -> Steps:
    """The steps next to rows[n, row] * columns[n, column], all above 0."""
    logs = [each.double().log2() for each in (rows, columns)]
    means = [float(each.mean()) for each in logs]
    places = (OCTAVE * (each - mean) for each, mean in zip(logs, means, strict=True))
    return Steps(2.0 ** sum(means), *(each.round().clamp(-127, 127).to(torch.int8) for each in places))


def plain_steps(weights: Tensor) -> Steps:
    """Steps of weights (n, rows, columns) where nothing is known of what a network does with them, to be scaled.

    The step goes with a matrix's norm: all then add the same relative error a value to what passes through. Within it,
    it goes with the root of how large a row's and a column's values are, half way between equal and relative errors.
    """
    squares = weights.float().square()
    size = squares.mean((1, 2)).clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    rows, columns = ((squares.mean(dim) / size).clamp(1 / RANGE**2, RANGE**2) ** 0.25 for dim in (2, 1))
    return near(rows * (size * weights[0].numel()).sqrt(), columns)


def curved_steps(curvature: Curvature) -> Steps:
    """Steps with which every rounded value adds as much to the divergence: 1/24 nat, before they are scaled.

    A value that counts F and is rounded to steps of s adds 1/2 F s^2/12. By error feedback an error of a column is made
    up for in those that follow, and what is left counts 1/u^2, u the column's place on the diagonal of `root`; so is an
    error of a row in those of later turns.

    Returns:
        Of matrices (n, rows, columns), as of `plain_steps`.
    """
    columns = curvature.root.diagonal(dim1=-2, dim2=-1) if curvature.whole else curvature.columns.rsqrt()
    rows = torch.empty(curvature.rows.shape[:2])
    for turn in curvature.turns:
        rows[:, turn.rows] = turn.counts.rsqrt()
    return near(rows, columns)
