"""How a tensor of a base is stored: in float16, or as integers and scales under names of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recast_cli.engine.base.codec.deflate import deflate, inflate
from recast_cli.engine.base.codec.grid import Grid
from recast_cli.engine.base.codec.packing import pack, packed_bytes, unpack
from recast_cli.engine.base.codec.steps import Steps
from recast_cli.engine.base.codec.trellis import halves
from recast_cli.engine.errors import DamagedFile
from recast_cli.engine.storage.tensors import Spec

BITS = (2, 3, 4, 5, 6, 7, 8)
"""Widths of a `Fixed`."""


@dataclass(frozen=True)
class Half:
    """Stored in float16, under its own name.

    Attributes:
        shape: The tensor's own, as of the other two.
    """

    shape: tuple[int, ...]

    def specs(self, name: str) -> dict[str, Spec]:
        """Names, types and shapes of what stands in the file for the tensor `name`."""
        return {name: Spec(torch.float16, self.shape)}

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What is stored of a tensor."""
        return {name: tensor.half()}

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor in float32, from what is stored."""
        return tensors[name].float()


@dataclass(frozen=True)
class Fixed:
    """Codes of equally many bits, and a scale for every few of them.

    Attributes:
        bits: 2 to 8.
        group: Values a scale.
        columns: Values a row; groups do not reach from a row into the next.
    """

    shape: tuple[int, ...]
    columns: int
    bits: int
    group: int

    @property
    def grid(self) -> Grid:
        """Where its values lie."""
        return Grid(self.bits, self.group)

    def specs(self, name: str) -> dict[str, Spec]:
        """As of `Half`."""
        rows = math.prod(self.shape) // self.columns
        return {
            f"{name}.codes": Spec(torch.uint8, (packed_bytes(math.prod(self.shape), self.bits),)),
            f"{name}.scales": Spec(torch.float16, (rows, self.grid.groups(self.columns))),
        }

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What is stored of a tensor: each value rounded to the nearest, with the scales that `Grid.search` finds."""
        rows = tensor.float().reshape(-1, self.columns)
        scales = self.grid.search(rows)
        return self.store(name, self.grid.encode(rows, scales), scales)

    def store(self, name: str, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """What is stored of codes and scales, each in row order, of any shape."""
        scales = scales.reshape(-1, self.grid.groups(self.columns)).half().contiguous()
        return {f"{name}.codes": pack(codes, self.bits), f"{name}.scales": scales}

    def codes(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Codes (rows, columns), uint8, and scales (rows, groups), float32, of what is stored."""
        codes = unpack(tensors[f"{name}.codes"], self.bits, math.prod(self.shape))
        return codes.view(-1, self.columns), tensors[f"{name}.scales"].float()

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """As of `Half`."""
        return self.grid.decode(*self.codes(name, tensors)).view(self.shape)


@dataclass(frozen=True)
class Deflated:
    """Integers in a stream that is as long as they need, points of a trellis, times a step for every row and column.

    After them the stream holds what makes the steps: an integer for every row, then one for every column.

    Attributes:
        matrices: (n, rows, columns), as which the tensor is seen.
        stream: Bytes of the stream.
        low: See deflate.py.
        scale: Of all steps, see steps.py.
    """

    shape: tuple[int, ...]
    matrices: tuple[int, int, int]
    stream: int
    low: int
    scale: float

    def specs(self, name: str) -> dict[str, Spec]:
        """As of `Half`."""
        return {f"{name}.codes": Spec(torch.uint8, (self.stream,))}

    def codes(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Steps]:
        """Integers (n, rows, columns) and their steps, of what is stored.

        Raises:
            DamagedFile: The stream is damaged.
        """
        count, rows, columns = self.matrices
        lengths = [count * rows * columns, count * rows, count * columns]
        try:
            codes, *steps = inflate(tensors[f"{name}.codes"], sum(lengths), self.low).split(lengths)
        except ValueError as error:
            raise DamagedFile(f"{name} of the base is damaged: {error}", "Run `recast mimic` again.") from None
        return codes.view(self.matrices), Steps(self.scale, *(each.view(count, -1) for each in steps))

    def decode(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """As of `Half`; errors as of `codes`."""
        codes, steps = self.codes(name, tensors)
        return ((codes + halves(codes)) * steps.spread()).view(self.shape)


def deflated(name: str, shape: tuple[int, ...], codes: Tensor, steps: Steps) -> Stored:
    """The code of a tensor, and what is stored of it: integers `codes`, (n, rows, columns), with their steps."""
    stream, low = deflate(torch.cat([codes.flatten(), steps.flat()]))
    count, height, width = codes.shape
    return Deflated(tuple(shape), (count, height, width), len(stream), low, steps.scale), {f"{name}.codes": stream}


Code = Half | Fixed | Deflated
Stored = tuple[Deflated, dict[str, Tensor]]
Encode = Callable[[str, Tensor, Code], dict[str, Tensor]]
"""From the name of a tensor, its value and its code to what is stored of it."""


def round_to_nearest(name: str, tensor: Tensor, code: Code) -> dict[str, Tensor]:
    """What is stored of a tensor whose code needs to know nothing else."""
    assert not isinstance(code, Deflated), "the steps are not known"
    return code.encode(name, tensor)


def code_bytes(code: Code) -> int:
    """Bytes of what is stored."""
    return sum(spec.nbytes for spec in code.specs("").values())


def code_from_dict(value: dict[str, Any]) -> Code:
    """A code from its fields. Raises LookupError, TypeError or ValueError where they are damaged."""
    shape = tuple(int(size) for size in value["shape"])
    if "stream" in value:
        count, rows, columns = (int(size) for size in value["matrices"])
        stream, low, scale = int(value["stream"]), int(value["low"]), float(value["scale"])
        found = Deflated(shape, (count, rows, columns), stream, low, scale)
        if count * rows * columns != math.prod(shape) or not 0 <= low <= 8 or not 0 < scale < math.inf:
            raise ValueError(f"no such code: {value}")
        return found
    if "bits" not in value:
        return Half(shape)
    fixed = Fixed(shape, int(value["columns"]), int(value["bits"]), int(value["group"]))
    if fixed.bits not in BITS or fixed.group < 1 or fixed.columns < 1 or math.prod(shape) % fixed.columns:
        raise ValueError(f"no such code: {value}")
    return fixed
