"""Which tensors of a base are stored as integers, and as which matrices they are seen."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recast_cli.engine.base.base import Base
from recast_cli.engine.layout.layout import Layout, coefficient_key, template_key
from recast_cli.engine.mimic.decompose.exact import solve_exact
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.tensors import specs

LARGE = 1024
"""Values from which a tensor of two dimensions or more is stored as integers; others are, in float16."""
Shape = tuple[int, int, int]
"""n, rows, columns."""


def matrices(name: str, shape: Sequence[int]) -> Shape:
    """How a tensor of a base is seen: as a matrix with a row for each output, or as one for each template.

    A leading dimension of one says nothing: of position embeddings (1, tokens, width) a row is a token.
    """
    several = (name.startswith("banks.") and name.endswith(".templates")) or (shape[0] == 1 and len(shape) > 2)
    count, rest = (shape[0], shape[1:]) if several else (1, shape)
    return count, rest[0], math.prod(rest[1:])


def matrices_of(name: str, tensor: Tensor) -> Tensor:
    """A tensor as its matrices (n, rows, columns), in float32."""
    return tensor.float().reshape(matrices(name, tensor.shape))


def is_large(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape is stored as integers at all."""
    return len(shape) > 1 and math.prod(shape) >= LARGE


def fits_half(tensor: Tensor) -> bool:
    """Whether float16 holds the values of a small tensor to about its own precision: none too large or too small."""
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return False
    return torch.allclose(tensor.half().to(tensor.dtype), tensor, rtol=2e-3, atol=1e-7)


def tensors_of_source(source: Source, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor that the exact solver makes a base of, but the coefficients, one at a time."""
    mixed = {f"{module}.weight" for module in layout.modules}
    for bank in layout.banks:
        weights = torch.stack([source.tensors[f"{module}.weight"].float() for module in bank.modules])
        yield template_key(bank), solve_exact(weights, bank.stored, layout.sets).templates
    for name in specs(source.tensors):
        if name not in mixed:
            yield name, source.tensors[name]


def tensors_of_base(base: Base) -> Iterator[tuple[str, Tensor]]:
    """The same of a base that there is already."""
    coefficients = set(map(coefficient_key, base.layout.modules))
    return ((name, tensor) for name, tensor in base.tensors.items() if name not in coefficients)
