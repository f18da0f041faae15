"""Digests over tensors, not files: the same weights have the same digest in any container.

A digest is a SHA-256 over names, types, shapes and the SHA-256 of the bytes of every tensor. Where a tensor is found in
two digests (the source's and the base's), its bytes are hashed once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recast_cli.engine.storage.header import to_json
from recast_cli.engine.storage.tensors import TYPE_NAMES, Spec, raw, spec_of

Hashed = tuple[Spec, Sequence[str]]
"""Type and shape of a tensor, and the SHA-256 of its bytes, or of each of its parts."""


def hash_bytes(tensor: Tensor) -> str:
    """SHA-256 of the bytes of a tensor in row order, 64 hexadecimal digits."""
    return hashlib.sha256(raw(tensor)).hexdigest()


def digest(tensors: Mapping[str, Hashed], extra: Any = None) -> str:
    """`sha256:…` over `extra` (plain values) and all `tensors` in the order of their names."""
    rows = [[name, TYPE_NAMES[spec.dtype], spec.shape, parts] for name, (spec, parts) in sorted(tensors.items())]
    return "sha256:" + hashlib.sha256(to_json([extra, *rows]).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """`digest` of `tensors`, which are read one at a time."""
    return digest({name: hashed(tensor) for name, tensor in tensors.items()})


def hashed(tensor: Tensor) -> Hashed:
    """A tensor as `digest` takes it, in one part."""
    return spec_of(tensor), [hash_bytes(tensor)]


def hash_templates(templates: Tensor, weights: Sequence[Tensor], hashes: Sequence[str]) -> list[str]:
    """`hash_bytes` of each template. In an exact bank templates are weights, whose `hashes` are known."""
    return [
        hashes[place] if same_bytes(template, weights[place]) else hash_bytes(template)
        for place, template in enumerate(templates)  # n is at most the number of layers
    ]


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """True where two tensors have one type and the same bits; 0.0 and -0.0 are different here."""
    integers = {2: torch.int16, 4: torch.int32}.get(one.element_size())
    return one.dtype == other.dtype and integers is not None and torch.equal(one.view(integers), other.view(integers))
