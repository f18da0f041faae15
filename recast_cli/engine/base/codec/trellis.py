"""Trellis-coded quantisation: values are rounded to half steps at the price of whole ones.

Points of the grid are multiples of half a step, value = (code + 0 or 1/2) * step. Which of the two it is nobody stores:
a row is read from its first column on, a state says it, and whether a code is even or odd leads to the next state. So
codes spread as those of whole steps do, and take as many bits, but eight states allow so many paths through a row that
the best of them comes 1 dB nearer to its values, of the 1.5 dB between uniform steps and the best there is (Marcellin
and Fischer 1990, doi:10.1109/26.46532; with entropy codes Fischer and Wang 1992, doi:10.1109/18.119699). The states are
those of Ungerboeck's convolutional code of parity checks 13 and 04, octal (1982, doi:10.1109/TIT.1982.1056454).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

STATES = 8
FEEDBACK, INPUT = 0b101, 0b010
"""What a state's lowest bit and a code's do to the next state: the two parity checks without their lowest bit."""
PERIOD, DELAYS = 7, (2, 3, 4, 6)
"""The states' lowest bits by themselves repeat after so many codes; and the codes before one that change its own."""
LARGEST_CODE = 2.0**23
"""No code is larger: float32 still has all integers there."""
BLOCK = 32
"""Columns whose errors wait before they are taken from those after the block."""
AT_ONCE = 2**22
"""Values whose paths are in memory at once: 8 bytes each, or 80 where errors are fed back."""


def following(state: Tensor, code: Tensor) -> Tensor:
    """The state after a code; integers of any shape."""
    return (state >> 1) ^ (FEEDBACK * (state & 1)) ^ (INPUT * (code & 1))


def halves(codes: Tensor) -> Tensor:
    """What is added to integers (..., columns): 0 or 1/2, float32 of the same shape.

    The lowest bits h of the states of `following` obey h[t] = h[t - 1] + h[t - 3] + p[t - 2] modulo 2, p the codes' own
    lowest bits: h is p times D^2 / (1 + D + D^3) in delays D. As (1 + D + D^3)(1 + D + D^2 + D^4) = 1 + D^7, it is also
    h[t] = h[t - 7] + p[t - 2] + p[t - 3] + p[t - 4] + p[t - 6]: sums over every seventh column.
    """
    odd = (codes & 1).to(torch.uint8)
    columns = odd.shape[-1]
    whole = columns + -columns % PERIOD
    padded = F.pad(odd, (max(DELAYS), whole - columns))
    fed = torch.stack([padded[..., max(DELAYS) - delay :][..., :whole] for delay in DELAYS]).sum(0, dtype=torch.uint8)
    sums = fed.unflatten(-1, (-1, PERIOD)).cumsum(-2, dtype=torch.uint8)  # modulo 256, which keeps the lowest bit
    return (sums & 1).flatten(-2)[..., :columns] / 2


def rounded(values: Tensor, halves: Tensor, odd: Tensor) -> Tensor:
    """The nearest of the even codes, or of the odd ones, to values over their steps; all of one shape."""
    return (2 * ((values - halves - odd) / 2).round()).clamp(-LARGEST_CODE, LARGEST_CODE) + odd


def origins() -> tuple[Tensor, Tensor]:
    """The two ways that lead to each state: the state before, and whether its code is odd, (2, STATES) both."""
    before = torch.arange(STATES)
    after = torch.cat([following(before, torch.tensor(parity)) for parity in (0, 1)])
    ways = after.argsort(stable=True).view(STATES, 2).T
    return ways % STATES, ways // STATES


BEFORE, ODD = origins()
WAYS = ODD * STATES + BEFORE
"""Of either way to a state, whether its code is odd and the state before in one number, (2, STATES)."""
HALF = torch.arange(STATES)[:, None] % 2 / 2
"""What each state adds to the code that it is left by, (STATES, 1)."""


def follow(weights: Tensor, steps: Tensor, root: Tensor | None = None) -> Tensor:
    """Whether codes are odd along the path through every row that errs least (Viterbi's algorithm).

    Args:
        weights: (n, rows, columns).
        steps: Of every value, of the same shape, all above 0.
        root: (n, columns, columns), U as of `feed_back` in mimic/compress/rounding.py: then d H d^T is kept small
            for every row d of errors, each path feeding back its own. Default: the squares of errors over their steps
            are.

    Returns:
        (n, rows, columns), uint8, 1 where the code is odd.
    """
    odd = torch.empty(weights.shape, dtype=torch.uint8)
    count, rows, columns = weights.shape
    some = max(1, AT_ONCE // columns)
    for first in range(0, count, several := max(1, some // rows)):
        for row in range(0, rows, some):
            part = slice(first, first + several), slice(row, row + some)
            values, their_steps = (each[part].float().permute(2, 0, 1).contiguous() for each in (weights, steps))
            if root is None:
                ways, cost = ways_to(values / their_steps)
            else:
                ways, cost = fed_ways_to(values, their_steps, root[part[0]])
            odd[part] = traced(ways, cost.argmin(1))
    return odd


def ways_to(values: Tensor) -> tuple[Tensor, Tensor]:
    """The better way to each state at every column of values over their steps, (columns, n, rows).

    Returns:
        Which of the two ways of `origins`, (columns, n, STATES, rows), and what the paths have cost, (n, STATES, rows).
    """
    ways, cost = torch.empty(*values.shape[:2], STATES, values.shape[2], dtype=torch.bool), start(*values.shape[1:])
    error = 2 * ODD + BEFORE % 2  # where what a way errs stands: all states see the same values
    for first in range(0, len(values), BLOCK):
        squares = off(values[first : first + BLOCK, :, None], HALF[:2]).square_().flatten(2, 3)
        costs = zip(*(squares.index_select(2, way) for way in error), strict=True)
        for column, (one, other) in enumerate(costs, start=first):
            cost, ways[column] = met(cost, one, other)
    return ways, cost


def fed_ways_to(weights: Tensor, steps: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """`ways_to` where every path feeds back its own errors: weights and steps (columns, n, rows), root as of `follow`.

    What paths lost within a block of columns is taken from the columns after it at its end, once it is known which
    paths are left.
    """
    columns, count, rows = weights.shape
    ways, cost = torch.empty(columns, count, STATES, rows, dtype=torch.bool), start(count, rows)
    left = weights[:, :, None].expand(-1, -1, STATES, -1)
    across = root.permute(1, 2, 0)[..., None, None]
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        block, left = left[: last - first], left[last - first :]
        lost = torch.empty(last - first, count, STATES, rows)
        before: list[Tensor] = []
        for column in range(first, last):
            step = steps[column, :, None]
            errors = (off(block[0] / step, HALF) * (step / across[column, column])[:, None]).flatten(1, 2)
            one, other = (errors.index_select(1, way) for way in WAYS)
            cost, taken = met(cost, one.square(), other.square())
            ways[column] = taken
            place = column - first
            before.append(torch.where(taken, BEFORE[1, :, None], BEFORE[0, :, None]))
            lost[place] = torch.where(taken, other, one)
            block = carried(block[1:], before[-1]) - across[column, column + 1 : last] * lost[place]
        state = torch.arange(STATES)[:, None].expand(count, STATES, rows)
        for place in reversed(range(last - first)):
            lost[place], state = lost[place].gather(1, state), before[place].gather(1, state)
        made_up = root[:, first:last, last:].mT @ lost.flatten(2).transpose(0, 1)
        left = carried(left, state) - made_up.unflatten(2, (STATES, rows)).transpose(0, 1)
    return ways, cost


def start(count: int, rows: int) -> Tensor:
    """What paths have cost before the first column, (n, STATES, rows): all begin in state 0."""
    cost = torch.full((count, STATES, rows), torch.inf)
    cost[:, 0] = 0
    return cost


def met(cost: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What paths have cost after a column whose ways cost so much, and whether the other way is cheaper."""
    one = cost.index_select(1, BEFORE[0]).add_(one)
    other = cost.index_select(1, BEFORE[1]).add_(other)
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
    even = wanted - (2 * (wanted / 2).round_()).clamp_(-LARGEST_CODE, LARGEST_CODE)
    return torch.stack([even, even - torch.ones(()).copysign(even)], -3)


def carried(of_states: Tensor, before: Tensor) -> Tensor:
    """What each state, (columns, n, STATES, rows), takes over from the one before it, (n, STATES, rows)."""
    return of_states.gather(2, before.expand(len(of_states), -1, -1, -1))


def traced(ways: Tensor, state: Tensor) -> Tensor:
    """Whether codes are odd, (n, rows, columns), on paths (columns, n, STATES, rows) that end in states (n, rows)."""
    odd = torch.empty(len(ways), *state.shape, dtype=torch.uint8)
    for column in reversed(range(len(ways))):
        way = ways[column].gather(1, state[:, None])[:, 0].long()
        odd[column], state = ODD[way, state], BEFORE[way, state]
    return odd.permute(1, 2, 0)
