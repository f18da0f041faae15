"""From a size, or from bits, to the code of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recast_cli.engine.compress.budget import allocate
from recast_cli.engine.compress.budget import smallest as smallest_bytes
from recast_cli.engine.compress.code import BITS, HALF, Code
from recast_cli.engine.compress.measure import Choice, choices
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout import Layout
from recast_cli.engine.mimic import stored_bytes
from recast_cli.engine.plan import role_of
from recast_cli.engine.solve import SolverOptions
from recast_cli.engine.source import Source
from recast_cli.engine.tensors import specs

GROUPS = (32, 64, 128)
"""Values a scale that a plan chooses from."""
GROUP = 64
"""Values a scale where bits are given and a group size is not."""
ROOM = 1024
"""Bytes of the header kept for what it says of the compression."""


@dataclass(frozen=True)
class Compression:
    """A plan: which tensor is stored how.

    Attributes:
        codes: By name of the base's tensor; one that is missing stays as it is.
        nbytes: The file takes at most that.
        source_bytes: Of the source's tensors, as it holds them; its file is a little larger.
        error: What all roundings add up to, in the unit of the choices.
    """

    codes: dict[str, Code]
    nbytes: int
    source_bytes: int
    error: float

    @property
    def ratio(self) -> float:
        """How many times smaller than the source."""
        return self.source_bytes / self.nbytes

    def to_dict(self) -> dict[str, Any]:
        """What the base's metadata says of the plan."""
        counts: dict[str, int] = {}
        for code in self.codes.values():
            counts[str(code.bits)] = counts.get(str(code.bits), 0) + code.numel
        return {"source_bytes": self.source_bytes, "values_by_bits": counts}

    @property
    def quantised(self) -> bool:
        """Whether any tensor has fewer than 16 bits."""
        return any(code.bits != HALF for code in self.codes.values())

    def roles(self) -> list[dict[str, Any]]:
        """By role, in order: `role`, `tensors`, `values`, `bits` -> tensors, `bytes`; vectors and the like in one."""
        found: dict[str, dict[str, Any]] = {}
        for name, code in self.codes.items():
            role = role_of_tensor(name) if code.bits != HALF or code.numel >= 2**14 else "the rest"
            row = found.setdefault(role, {"role": role, "tensors": 0, "values": 0, "bits": {}, "bytes": 0})
            row["tensors"] += 1
            row["values"] += code.numel
            row["bits"][str(code.bits)] = row["bits"].get(str(code.bits), 0) + 1
            row["bytes"] += code.nbytes
        return sorted(found.values(), key=lambda row: row["role"] == "the rest")


def role_of_tensor(name: str) -> str:
    """The role of a bank or of a tensor: `banks.blocks.0-1.attn.qkv.templates` -> `blocks.*.attn.qkv`."""
    name = name.removeprefix("banks.").removesuffix(".templates").removesuffix(".weight")
    return role_of(".".join("0" if part.replace("-", "").isdigit() else part for part in name.split(".")))


def plan_codes(
    source: Source,
    layout: Layout,
    *,
    size: int | None = None,
    bits: int | None = None,
    group: int | None = None,
    options: SolverOptions = None,
    sensitivity: Mapping[str, Any] | None = None,
) -> Compression:
    """Choose the code of every tensor of a base.

    Args:
        source: From `open_source`.
        layout: From `plan_layout`.
        size: Most bytes that the file may take, header and all: bits are then chosen tensor by tensor, see `allocate`.
        bits: Instead of a size: of every large tensor, 2 to 8, or 16 for float16.
        group: Values a scale; default: 64 with `bits`, else chosen.
        options: Of the solver; they stand in the header and count.
        sensitivity: As of `choices`.

    Raises:
        RecastError: A number is out of range, or the size cannot be met.
    """
    check(size, bits, group)
    groups = (group,) if group else ((GROUP,) if bits else GROUPS)
    ways = choices(source, layout, (bits,) if bits else BITS, groups, sensitivity)

    def file_bytes(chosen: Mapping[str, Choice]) -> int:
        return stored_bytes(source, layout, options, codes_of(chosen)) + ROOM

    chosen = within(ways, size, file_bytes)
    if chosen is None:
        least = allocate(ways, smallest_bytes(ways))
        assert least is not None
        smallest = file_bytes(least)
        raise RecastError(
            f"{size or 0:,} bytes are too few: the smallest base of this source and layout takes {smallest:,} "
            f"({source_bytes(source) / smallest:.1f}x)",
            "Ask for no less; most of a network is lost there already.",
        )
    error = sum(way.error for way in chosen.values())
    return Compression(codes_of(chosen), file_bytes(chosen), source_bytes(source), error)


def source_bytes(source: Source) -> int:
    """Bytes of the source's tensors."""
    return sum(spec.nbytes for spec in specs(source.tensors).values())


def check(size: int | None, bits: int | None, group: int | None) -> None:
    """Raise RecastError where the numbers make no plan."""
    if size is not None and bits is not None:
        raise RecastError("--size chooses the bits itself", "Give --size or --bits, not both.")
    if bits is not None and bits not in BITS:
        raise RecastError(f"--bits {bits} is out of range", "Give 2 to 8, or 16 for float16.")
    if group is not None and not 8 <= group <= 4096:
        raise RecastError(f"--group-size {group} is out of range", "Give 8 to 4096 values a scale; 64 is usual.")
    if group is not None and size is None and bits in (None, HALF):
        raise RecastError("--group-size goes with fewer bits", "Give --size or --bits, too.")


def within(
    ways: Mapping[str, list[Choice]], size: int | None, file_bytes: Callable[[Mapping[str, Choice]], int]
) -> dict[str, Choice] | None:
    """The best choice whose file takes at most `size` bytes; None where there is none."""
    budget = sum(max(way.nbytes for way in each) for each in ways.values())
    if size is None:
        return allocate(ways, budget)
    budget = min(budget, size)
    # the header's length depends a little on the choice, so its share is found by trying
    while (chosen := allocate(ways, budget)) and (excess := file_bytes(chosen) - size) > 0:
        budget -= excess
    return chosen


def codes_of(chosen: Mapping[str, Choice]) -> dict[str, Code]:
    """The codes among the choices."""
    return {name: way.code for name, way in chosen.items() if way.code is not None}
