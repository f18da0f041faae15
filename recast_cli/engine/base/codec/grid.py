"""The grid that a quantised tensor lies on, and rounding to the nearest point of it.

A tensor is seen as rows (all values of one output), a row as groups of `group` neighbours that share a scale:

    value = scale * (code - (2**bits - 1) / 2),   code = 0 .. 2**bits - 1

The grid has as many points above 0 as below, so that all 2**bits codes are of use for weights, which lie around 0; zero
itself is half a step from a point, which no network here has been seen to mind.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 2.0**-24
"""The smallest number above 0 in float16, which scales are stored in."""
STEP = 0.04
"""Of the search for a scale: how much shorter the next range is, as a share of the largest value."""


@dataclass(frozen=True)
class Grid:
    """Bits a value, and values a scale.

    Attributes:
        bits: 2 to 8.
        group: Neighbours in a row that share a scale; a row's last group may be shorter.
    """

    bits: int
    group: int

    @property
    def centre(self) -> float:
        """Half of the largest code: where 0 lies."""
        return (2**self.bits - 1) / 2

    def groups(self, columns: int) -> int:
        """Scales of a row of `columns` values."""
        return -(-columns // self.group)

    def spread(self, scales: Tensor, columns: int) -> Tensor:
        """Scales (..., rows, groups), one for every value: (..., rows, columns)."""
        return scales.repeat_interleave(self.group, -1)[..., :columns]

    def encode(self, rows: Tensor, scales: Tensor) -> Tensor:
        """The nearest codes of values (..., rows, columns), as floats of the same shape."""
        steps = self.spread(scales, rows.shape[-1]).clamp_min(SMALLEST)
        return (rows / steps + self.centre).round_().clamp_(0, 2 * self.centre)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Values (..., rows, columns) of codes and scales, float32."""
        return (codes.float() - self.centre) * self.spread(scales.float(), codes.shape[-1])

    def search(self, rows: Tensor, importance: Tensor | None = None) -> Tensor:
        """Scales that make the squared rounding error of each group least: large values are cut off where that pays.

        Args:
            rows: (..., rows, columns).
            importance: Weight of each squared error, of a shape that broadcasts to `rows`; default: all alike.

        Returns:
            (..., rows, groups) in float16's values: the best of ranges of 100 %, 96 %, ... of the largest value.
        """
        values = self.cut(rows)  # (..., rows, groups, group)
        weight = None if importance is None else self.cut(importance.expand_as(rows))
        widest = values.abs().amax(-1, keepdim=True) / self.centre
        best = error = torch.empty(0)
        for attempt in range(1 + 3 * (8 - self.bits)):  # the fewer the points, the more a shorter range can pay
            scales = stored(widest * (1 - STEP * attempt))
            steps = scales.clamp_min(SMALLEST)
            codes = (values / steps + self.centre).round_().clamp_(0, 2 * self.centre)
            off = codes.sub_(self.centre).mul_(scales).sub_(values).square_()
            found = (off if weight is None else off.mul_(weight)).sum(-1, keepdim=True)
            if not attempt:
                best, error = scales, found
            better = found < error
            best, error = torch.where(better, scales, best), torch.where(better, found, error)
        return best[..., 0]

    def cut(self, rows: Tensor) -> Tensor:
        """(..., rows, columns) -> (..., rows, groups, group); what the last group lacks is 0."""
        padded = F.pad(rows.float(), (0, -rows.shape[-1] % self.group))
        return padded.unflatten(-1, (-1, self.group))


def stored(scales: Tensor) -> Tensor:
    """Scales as float16 holds them, in float32."""
    return scales.clamp_max(torch.finfo(torch.float16).max).half().float()
