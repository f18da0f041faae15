"""How finely each value of a tensor is rounded: a step for every row times one for every column.

Integers that are stored by their entropy cost about log2 of value over step. Then the best there is for so many bits is
the same error for every value, in the metric of what is to be kept small: steps are large where errors matter little.
With error feedback this is WaterSIC (Lifar, Savkin, Ordentlich and Polyanskiy 2026, arXiv:2603.04956).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

OCTAVE = 8
"""Steps between a step and its double: they need be no finer, a few per cent more or less cost next to nothing."""


class Steps(NamedTuple):
    """Of matrices (n, rows, columns): a value's step is scale * 2^((rows[n, row] + columns[n, column]) / OCTAVE).

    Attributes:
        scale: Of all.
        rows: (n, rows), int8.
        columns: (n, columns), int8.
    """

    scale: float
    rows: Tensor
    columns: Tensor

    def times(self, factor: float) -> Steps:
        """Steps so many times as large."""
        return self._replace(scale=self.scale * factor)

    def flat(self) -> Tensor:
        """Rows, then columns: (n * (rows + columns),), int8."""
        return torch.cat([self.rows.flatten(), self.columns.flatten()])

    def spread(self) -> Tensor:
        """One for every value: (n, rows, columns), float32."""
        rows, columns = (torch.exp2(each.double() / OCTAVE) for each in (self.rows, self.columns))
        return (self.scale * rows).float()[..., :, None] * columns.float()[..., None, :]
