"""A plan of compression: which tensor is stored how, and how large the file is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from recast_cli.engine.base.codec.code import Code, Fixed, Half, code_bytes
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.families import role_of
from recast_cli.engine.layout.layout import Layout, coefficient_key
from recast_cli.engine.mimic.compress.matrices import fits_half, is_large, matrices
from recast_cli.engine.mimic.decompose.manifest import base_specs, stored_bytes
from recast_cli.engine.mimic.decompose.solver_options import SolverOptions
from recast_cli.engine.mimic.options import HALF
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.tensors import specs

GROUP = 64
"""Values a scale where bits are given and a group size is not."""
ROOM = 1024
"""Bytes of the header kept for what it says of the compression."""


@dataclass(frozen=True)
class Compression:
    """A plan.

    Attributes:
        codes: By name of the base's tensor; one that is missing stays as it is.
        nbytes: The file takes at most that.
        source_bytes: Of the source's tensors, as it holds them; its file is a little larger.
    """

    codes: dict[str, Code]
    nbytes: int
    source_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller than the source."""
        return self.source_bytes / self.nbytes

    def to_dict(self) -> dict[str, Any]:
        """What the base's metadata says of the plan: `bits` are those of what is stored as integers, scales and all."""
        rounded = [code for code in self.codes.values() if not isinstance(code, Half)]
        values = sum(prod(code.shape) for code in rounded)
        bits = round(8 * sum(map(code_bytes, rounded)) / values, 3) if values else HALF
        return {"source_bytes": self.source_bytes, "bits": bits, "rounded": values}

    def roles(self) -> list[dict[str, Any]]:
        """By role, in order: `role`, `tensors`, `values`, `bytes`; vectors and the like in one."""
        found: dict[str, dict[str, Any]] = {}
        for name, code in self.codes.items():
            role = role_of_tensor(name) if is_large(code.shape) else "the rest"
            row = found.setdefault(role, {"role": role, "tensors": 0, "values": 0, "bytes": 0})
            row["tensors"] += 1
            row["values"] += prod(code.shape)
            row["bytes"] += code_bytes(code)
        return sorted(found.values(), key=lambda row: row["role"] == "the rest")


def role_of_tensor(name: str) -> str:
    """The role of a bank or of a tensor: `banks.blocks.0-1.attn.qkv.templates` -> `blocks.*.attn.qkv`."""
    name = name.removeprefix("banks.").removesuffix(".templates").removesuffix(".weight")
    return role_of(".".join("0" if part.replace("-", "").isdigit() else part for part in name.split(".")))


def source_bytes(source: Source) -> int:
    """Bytes of the source's tensors."""
    return sum(spec.nbytes for spec in specs(source.tensors).values())


def planned(source: Source, layout: Layout, options: SolverOptions, codes: Mapping[str, Code]) -> Compression:
    """The plan that these codes make."""
    return Compression(dict(codes), stored_bytes(source, layout, options, codes) + ROOM, source_bytes(source))


def is_enough(source: Source, layout: Layout, options: SolverOptions, size: int) -> bool:
    """Whether all in float16 takes at most `size` bytes, so that nothing need be rounded."""
    ours = set(map(coefficient_key, layout.modules))
    found = base_specs(source, layout, "float32").items()
    codes = {name: Half(spec.shape) for name, spec in found if spec.dtype.is_floating_point and name not in ours}
    return planned(source, layout, options, codes).nbytes <= size


def small_codes(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Code]:
    """The codes of small tensors. Raises RecastError where a large one cannot be rounded."""
    codes: dict[str, Code] = {}
    for name, tensor in tensors:
        if not is_large(tensor.shape):
            if fits_half(tensor):
                codes[name] = Half(tuple(tensor.shape))
        elif not torch.stack(tensor.float().aminmax()).isfinite().all():
            raise RecastError(f"{name} has values that are NaN or infinite", "Give a sound checkpoint.")
    return codes


def fixed_code(name: str, tensor: Tensor, bits: int, group: int | None) -> Code:
    """The code of a large tensor where bits are given."""
    shape = tuple(tensor.shape)
    columns = matrices(name, shape)[2]
    return Half(shape) if bits == HALF else Fixed(shape, columns, bits, min(group or GROUP, columns))
