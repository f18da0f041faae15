"""Integers of 2 to 8 bits in bytes, without gaps: value i is bits i*b to i*b + b - 1, the lowest bit first.

NumPy reads it back without this tool:

    stream = np.unpackbits(packed, bitorder="little")[: count * bits]
    values = stream.reshape(count, bits) @ (1 << np.arange(bits))
"""

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**20
"""Values that are spread into their bits at a time, a byte each; a multiple of 8, so that blocks end with bytes."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take."""
    return -(-count * bits // 8)


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers from 0 to 2**bits - 1, of any shape, in row order -> uint8 (packed_bytes,)."""
    flat = values.reshape(-1).to(torch.uint8)
    if bits == 8:
        return flat.clone()
    parts = (np.unpackbits(part.numpy(), axis=1, count=bits, bitorder="little") for part in flat[:, None].split(BLOCK))
    return torch.from_numpy(np.concatenate([np.packbits(part, bitorder="little") for part in parts]))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of `pack`: the first `count` values, uint8 (count,)."""
    if bits == 8:
        return packed[:count]
    weights = (1 << torch.arange(bits)).to(torch.uint8)
    parts = []
    for part in packed.split(BLOCK // 8 * bits):
        stream = torch.from_numpy(np.unpackbits(part.numpy(), bitorder="little"))
        stream = stream[: len(stream) // bits * bits]
        parts.append((stream.view(-1, bits) * weights).sum(1, dtype=torch.uint8))
    return torch.cat(parts)[:count]
