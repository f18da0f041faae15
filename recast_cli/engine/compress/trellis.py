"""Trellis-coded quantisation: values are rounded to half steps at the price of whole ones.

Points of the grid are multiples of half a step, value = (code + 0 or 1/2) * step. Which of the two it is nobody stores:
a row is read from its first column on, a state says it, and whether a code is even or odd leads to the next state. So
codes spread as those of whole steps do, and take as many bits, but eight states allow so many paths through a row that
the best of them comes 1 dB nearer to its values, of the 1.5 dB between uniform steps and the best there is (Marcellin
and Fischer 1990, doi:10.1109/26.46532; with entropy codes Fischer and Wang 1992, doi:10.1109/18.119699). The states are
those of Ungerboeck's convolutional code of parity checks 13 and 04, octal (1982, doi:10.1109/TIT.1982.1056454).
"""

from __future__ import annotations

import torch
from torch import Tensor

STATES = 8
FEEDBACK, INPUT = 0b101, 0b010
"""What a state's lowest bit and a code's do to the next state: the two parity checks without their lowest bit."""
MOST = 2.0**23
"""No code is larger: float32 still has all integers there."""
BLOCK = 32
"""Columns whose errors wait before they are taken from those after the block."""
AT_ONCE = 2**22
"""Values whose paths are in memory at once: 8 bytes each, or 40 where errors are fed back."""


def following(state: Tensor, code: Tensor) -> Tensor:
    """The state after a code; integers of any shape."""
    return (state >> 1) ^ (FEEDBACK * (state & 1)) ^ (INPUT * (code & 1))


def halves(codes: Tensor) -> Tensor:
    """What is added to integers (..., columns): 0 or 1/2, float32 of the same shape."""
    parities = (codes & 1).to(torch.int32).movedim(-1, 0).contiguous()
    state = torch.zeros_like(parities[0])
    found = torch.empty(parities.shape)
    for column, parity in enumerate(parities):
        found[column] = state & 1
        state = following(state, parity)
    return (found / 2).movedim(0, -1)


def rounded(values: Tensor, halves: Tensor, odd: Tensor) -> Tensor:
    """The nearest of the even codes, or of the odd ones, to values over their steps; all of one shape."""
    return (2 * ((values - halves - odd) / 2).round()).clamp(-MOST, MOST) + odd


def origins() -> tuple[Tensor, Tensor]:
    """The two ways that lead to each state: the state before, and whether its code is odd, (2, STATES) both."""
    before = torch.arange(STATES)
    after = torch.cat([following(before, torch.tensor(parity)) for parity in (0, 1)])
    ways = after.argsort(stable=True).view(STATES, 2).T
    return ways % STATES, ways // STATES


BEFORE, ODD = origins()
HALF = torch.arange(STATES) & 1
"""Of each state, whether half a step is added to the code that it is left by."""


def follow(weights: Tensor, steps: Tensor, root: Tensor | None = None) -> Tensor:
    """Whether codes are odd along the path through every row that errs least (Viterbi's algorithm).

    Args:
        weights: (n, rows, columns).
        steps: Of every value, of the same shape, all above 0.
        root: (n, columns, columns), U as of `feed_back` in rounding.py: then d H d^T is kept small for every row d of
            errors, each path feeding back its own. Default: the squares of errors over their steps are.

    Returns:
        (n, rows, columns), uint8, 1 where the code is odd.
    """
    odd = torch.empty(weights.shape, dtype=torch.uint8)
    rows = max(1, AT_ONCE // weights.shape[-1])
    for number, matrix in enumerate(weights.float()):
        for first in range(0, len(matrix), rows):
            part = slice(first, first + rows)
            some, their_steps = matrix[part].T.contiguous(), steps[number, part].T.contiguous()
            ways, cost = ways_to(some / their_steps) if root is None else fed_ways_to(some, their_steps, root[number])
            odd[number, part] = traced(ways, cost.argmin(0))
    return odd


def ways_to(values: Tensor) -> tuple[Tensor, Tensor]:
    """The better way to each state at every column.

    Args:
        values: Over their steps, (columns, rows).

    Returns:
        Which of the two ways of `origins`, (columns, STATES, rows), and what the paths have cost, (STATES, rows).
    """
    columns, rows = values.shape
    ways, cost = torch.empty(columns, STATES, rows, dtype=torch.bool), start(rows)
    error = 2 * ODD + HALF[BEFORE]  # where what a way errs stands: all states see the same values
    for first in range(0, columns, BLOCK):
        squares = off(values[first : first + BLOCK, None], torch.tensor([[0.0], [0.5]])).square_().flatten(1, 2)
        costs = zip(*(squares.index_select(1, way) for way in error), strict=True)
        for column, (one, other) in enumerate(costs, start=first):
            cost, ways[column] = met(cost, one, other)
    return ways, cost


def fed_ways_to(weights: Tensor, steps: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """`ways_to` of weights (columns, rows) with steps of the same shape, where every path feeds back its own errors."""
    columns, rows = weights.shape
    ways, cost = torch.empty(columns, STATES, rows, dtype=torch.bool), start(rows)
    left = weights[:, None].expand(columns, STATES, rows)
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        block, left = left[: last - first], left[last - first :]
        lost = torch.empty(last - first, STATES, rows)
        origin = torch.arange(STATES)[:, None].expand(STATES, rows)
        for column in range(first, last):
            errors = off(block[0] / steps[column], HALF[:, None] / 2) * (steps[column] / root[column, column])
            one, other = (errors[ODD[way], BEFORE[way]] for way in (0, 1))
            cost, taken = met(cost, one.square(), other.square())
            ways[column] = taken
            place, before = column - first, torch.where(taken, BEFORE[1, :, None], BEFORE[0, :, None])
            lost[:place], origin = carried(lost[:place], before), origin.gather(0, before)
            lost[place] = torch.where(taken, other, one)
            block = carried(block[1:], before) - root[column, column + 1 : last, None, None] * lost[place]
        made_up = root[first:last, last:].T @ lost.flatten(1)
        left = carried(left, origin) - made_up.view_as(left)
    return ways, cost


def start(rows: int) -> Tensor:
    """What paths have cost before the first column, (STATES, rows): all begin in state 0."""
    cost = torch.full((STATES, rows), torch.inf)
    cost[0] = 0
    return cost


def met(cost: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What paths have cost after a column whose ways cost so much, and whether the other way is cheaper."""
    one = cost.index_select(0, BEFORE[0]).add_(one)
    other = cost.index_select(0, BEFORE[1]).add_(other)
    return torch.minimum(one, other), other < one


def off(values: Tensor, halves: Tensor) -> Tensor:
    """How far values are from the nearest even and odd codes.

    Args:
        values: Over their steps, (..., 1 or states, rows).
        halves: What is added to codes, (states, 1).

    Returns:
        (..., even or odd, states, rows), with a sign.
    """
    wanted = values - halves
    even = wanted - (2 * (wanted / 2).round_()).clamp_(-MOST, MOST)
    return torch.stack([even, even - torch.ones(()).copysign(even)], -3)


def carried(of_states: Tensor, before: Tensor) -> Tensor:
    """What each state, (columns, STATES, rows), takes over from the one before it, (STATES, rows)."""
    return of_states.gather(1, before.expand(len(of_states), -1, -1))


def traced(ways: Tensor, state: Tensor) -> Tensor:
    """Whether codes are odd, (rows, columns), on paths that end in a state, (rows,); ways: (columns, STATES, rows)."""
    odd = torch.empty(len(ways), len(state), dtype=torch.uint8)
    for column in reversed(range(len(ways))):
        way = ways[column].gather(0, state[None])[0].long()
        odd[column], state = ODD[way, state], BEFORE[way, state]
    return odd.T
