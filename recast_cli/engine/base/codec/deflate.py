"""Integers in as few bytes as their spread asks for: zlib's Huffman codes, shorter for what is frequent.

A stream of `count` integers, decompressed by zlib, is

* a signed byte for each: the integer shifted down by `low` bits, or -128 where that does not fit;
* a little-endian 32-bit integer for each that does not fit, shifted as well;
* the `low` (at most 8) lowest bits of each, packed as in packing.py: they are next to random, so nothing is gained on
  them.

NumPy and zlib read it back without this tool, see docs/reference/base-file.md. A checksum is part of the stream.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from recast_cli.engine.base.codec.packing import pack, packed_bytes, unpack

SPREAD = 32
"""Integers are shifted until their standard deviation is no larger: hardly any then does not fit into a byte."""
WIDE = -128
"""Marks an integer that does not fit into a byte."""


def deflate(values: Tensor) -> tuple[Tensor, int]:
    """The stream of integers of any shape, in row order: uint8 (bytes,), and `low`."""
    flat = values.reshape(-1).to(torch.int32)
    spread = float(flat.double().std(correction=0)) if len(flat) else 0.0
    low = min(8, max(0, math.ceil(math.log2(spread / SPREAD)))) if spread else 0
    high = flat >> low
    wide = high.abs() > 127
    parts = [high.masked_fill(wide, WIDE).to(torch.int8).numpy().tobytes()]
    parts.append(high[wide].numpy().astype("<i4").tobytes())
    parts.append(pack(flat & (2**low - 1), low).numpy().tobytes() if low else b"")
    # no search for repetitions: there are none, and without it the stream is made ten times faster
    packer = zlib.compressobj(memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)  # the most memory makes the longest blocks
    return torch.from_numpy(np.frombuffer(packer.compress(b"".join(parts)) + packer.flush(), np.uint8).copy()), low


def inflate(stream: Tensor, count: int, low: int) -> Tensor:
    """Inverse of `deflate`: int32 (count,). Raises ValueError where the stream is damaged."""
    try:
        raw = zlib.decompress(stream.numpy().tobytes())
    except zlib.error as error:
        raise ValueError(str(error)) from None
    values = np.frombuffer(raw[:count], np.int8).astype(np.int32)
    wide = values == WIDE
    end = count + 4 * int(wide.sum())
    if len(raw) != end + packed_bytes(count, low):
        raise ValueError("the stream has another length")
    values[wide] = np.frombuffer(raw[count:end], "<i4")
    found = torch.from_numpy(values)
    if low:
        found = (found << low) + unpack(torch.frombuffer(bytearray(raw[end:]), dtype=torch.uint8), low, count)
    return found
