"""How a tensor of a base is stored: in float16, or as codes and scales under names of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recast_cli.engine.compress.grid import Grid
from recast_cli.engine.compress.packing import pack, packed_bytes, unpack
from recast_cli.engine.tensors import Spec

HALF = 16
"""Bits of a tensor that is stored in float16, under its own name."""
BITS = (2, 3, 4, 5, 6, 7, 8, HALF)


@dataclass(frozen=True)
class Code:
    """How one tensor is stored.

    Attributes:
        bits: 2 to 8, or 16 for float16.
        group: Values a scale; 0 with 16 bits.
        shape: The tensor's own.
        columns: Values a row; groups do not reach from a row into the next.
    """

    bits: int
    group: int
    shape: tuple[int, ...]
    columns: int

    @property
    def grid(self) -> Grid:
        """Of a quantised tensor."""
        return Grid(self.bits, self.group)

    @property
    def numel(self) -> int:
        """Values in the tensor."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """How many rows it is cut into."""
        return self.numel // self.columns

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(spec.nbytes for spec in self.specs("").values())

    def specs(self, name: str) -> dict[str, Spec]:
        """Names, types and shapes of what stands in the file for the tensor `name`."""
        if self.bits == HALF:
            return {name: Spec(torch.float16, self.shape)}
        codes, scales = names(name)
        return {
            codes: Spec(torch.uint8, (packed_bytes(self.numel, self.bits),)),
            scales: Spec(torch.float16, (self.rows, self.grid.groups(self.columns))),
        }

    def encode(self, name: str, tensor: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """What is stored of `tensor`: each value rounded to the nearest, with the scales that `Grid.search` finds."""
        if self.bits == HALF:
            return {name: tensor.half()}
        rows = tensor.float().reshape(-1, self.columns)
        scales = self.grid.search(rows, None if importance is None else importance.reshape(-1, self.columns))
        return self.store(name, self.grid.encode(rows, scales), scales)

    def store(self, name: str, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """What is stored of codes and scales, each in row order, of any shape."""
        first, second = names(name)
        scales = scales.reshape(self.rows, -1).half().contiguous()
        return {first: pack(codes, self.bits), second: scales}

    def codes(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Codes (rows, columns), uint8, and scales (rows, groups), float32, of what is stored."""
        first, second = names(name)
        return unpack(tensors[first], self.bits, self.numel).view(-1, self.columns), tensors[second].float()

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor in float32, from what is stored."""
        if self.bits == HALF:
            return tensors[name].float()
        return self.grid.decode(*self.codes(name, tensors)).view(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"bits": self.bits, "group": self.group, "shape": list(self.shape), "columns": self.columns}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Code:
        """Inverse of `to_dict`. Raises LookupError, TypeError or ValueError where it is damaged."""
        code = cls(
            int(value["bits"]), int(value["group"]), tuple(int(n) for n in value["shape"]), int(value["columns"])
        )
        quantised = code.bits != HALF
        if code.bits not in BITS or (quantised and code.group < 1) or code.columns < 1 or code.numel % code.columns:
            raise ValueError(f"no such code: {value}")
        return code


def names(name: str) -> tuple[str, str]:
    """Under which names the codes and the scales of a tensor are stored."""
    return f"{name}.codes", f"{name}.scales"
