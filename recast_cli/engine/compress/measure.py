"""What each code would cost a tensor: bytes in the file, and an error that can be added up over tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recast_cli.engine.compress.code import HALF, Code
from recast_cli.engine.layout import Layout, template_key
from recast_cli.engine.solve import solve_exact
from recast_cli.engine.source import Source
from recast_cli.engine.tensors import specs

LARGE = 1024
"""Values from which a tensor of two dimensions or more is quantised; smaller ones, and vectors, stay in float16."""
SAMPLE = 2**18
"""Values of a tensor that an error is measured on."""
OWN = 0
"""Bits of a tensor that stays as it is."""


class Choice(NamedTuple):
    """One way to store a tensor.

    Attributes:
        code: None: as it is.
        nbytes: In the file.
        error: What it adds to the sum that is kept small.
    """

    code: Code | None
    nbytes: int
    error: float


def candidates(shape: tuple[int, ...], columns: int, bits: Sequence[int], groups: Sequence[int]) -> list[Code]:
    """The codes to choose from for a large tensor."""
    sizes = sorted({min(group, columns) for group in groups})
    quantised = [Code(width, size, shape, columns) for width in bits if width != HALF for size in sizes]
    return quantised + [Code(HALF, 0, shape, columns)] * (HALF in bits)


def tensors_to_store(source: Source, layout: Layout) -> Iterator[tuple[str, Tensor, int]]:
    """Name, value and values a row of every tensor of the base but the coefficients, one at a time.

    Templates are those of the exact solver, whatever solver is used later: only their spread matters here.
    """
    mixed = set()
    for bank in layout.banks:
        weights = torch.stack([source.tensors[f"{module}.weight"].float() for module in bank.modules])
        mixed |= {f"{module}.weight" for module in bank.modules}
        yield template_key(bank), solve_exact(weights, bank.templates, 1).templates, math.prod(bank.shape[1:])
    for name, spec in specs(source.tensors).items():
        if name not in mixed:
            yield name, source.tensors[name], math.prod(spec.shape[1:])


def is_large(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape is quantised at all."""
    return len(shape) > 1 and math.prod(shape) >= LARGE


def fits_half(tensor: Tensor) -> bool:
    """Whether float16 holds the values of a small tensor to about its own precision: none too large or too small."""
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return False
    return torch.allclose(tensor.half().to(tensor.dtype), tensor, rtol=2e-3, atol=1e-7)


def choices(
    source: Source,
    layout: Layout,
    bits: Sequence[int],
    groups: Sequence[int],
    sensitivity: Mapping[str, Tensor] | None = None,
) -> dict[str, list[Choice]]:
    """All ways to store each tensor of the base but its coefficients, with the error of rounding to the nearest.

    Args:
        source: Read once, one bank at a time.
        layout: Of the base.
        bits: To choose from, of `BITS`.
        groups: To choose from: values a scale.
        sensitivity: By name of the base's tensor: the weight of each squared error. Default: one over the tensor's
            sum of squares: relative errors are added up, as each adds such a share of noise to what passes through.
    """
    found = {}
    for name, tensor, columns in tensors_to_store(source, layout):
        if not tensor.is_floating_point():
            found[name] = [Choice(None, tensor.nbytes, 0.0)]
        elif not is_large(tensor.shape):
            code = Code(HALF, 0, tuple(tensor.shape), max(1, columns)) if fits_half(tensor) else None
            found[name] = [Choice(code, code.nbytes if code else tensor.nbytes, 0.0)]
        else:
            weight = sensitivity.get(name) if sensitivity is not None else None
            codes = candidates(tuple(tensor.shape), columns, bits, groups)
            found[name] = measured(tensor.reshape(-1, columns).float(), codes, weight)
    return found


def measured(rows: Tensor, codes: Sequence[Code], weight: Tensor | None) -> list[Choice]:
    """Bytes and error of each code for a tensor (rows, columns); large ones are measured on evenly spaced rows."""
    every = max(1, rows.numel() // SAMPLE)
    scale = 1 / float(rows.double().square().sum().clamp_min(1e-30)) if weight is None else 0.5
    weights = None if weight is None else weight.reshape(rows.shape)[::every]
    total, rows = len(rows), rows[::every]
    result = []
    for code in codes:
        if code.bits == HALF:
            kept = rows.half().float()
        else:
            scales = code.grid.search(rows)
            kept = code.grid.decode(code.grid.encode(rows, scales), scales)
        off = (kept - rows).square_()
        error = float((off if weights is None else off.mul_(weights)).sum(dtype=torch.float64)) * total / len(rows)
        result.append(Choice(code, code.nbytes, error * scale))
    return result
