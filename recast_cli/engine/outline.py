"""The coefficients of a base without its weights and without torch, which takes longer to import than to read them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recast_cli.engine.errors import RecastError
from recast_cli.engine.files import read_header, read_metadata
from recast_cli.engine.layout import Layout, coefficient_key


@dataclass(frozen=True)
class Outline:
    """What is known of a base without its weights.

    Attributes:
        layout: Which modules are in which bank.
        vector: All mimicked coefficients in layout order: layout.coefficients numbers.
        base_id: Digest of layout and tensors; tasks are bound to it.
        source: Name of the source.
        path: The file.
    """

    layout: Layout
    vector: list[float]
    base_id: str
    source: str
    path: Path


def read_outline(path: Path) -> Outline:
    """Read the outline of a base file.

    Raises:
        RecastError: Missing, damaged, from a newer version, or not a base.
    """
    metadata = read_metadata(path)
    if metadata is None or metadata["kind"] != "base":
        raise RecastError(f"{path} is not a base", "Give the base the task was made with, or make one: recast mimic.")
    layout = Layout.from_dict(metadata.get("layout", {}))
    vector = read_floats(path, [coefficient_key(module) for module in layout.modules])
    if len(vector) != layout.coefficients or not {"base_id", "source"} <= metadata.keys():
        raise RecastError(f"{path}: its recast metadata is damaged", "Run `recast mimic` again.")
    return Outline(layout, vector, metadata["base_id"], metadata["source"], path)


def read_floats(path: Path, names: Sequence[str]) -> list[float]:
    """The values of float32 tensors of a safetensors file, in row order and one tensor after the other.

    Raises:
        RecastError: As `read_header`, or a tensor is missing or of another type.
    """
    header = read_header(path)
    values: list[float] = []
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        for name in names:
            entry = header.get(name, {})
            if entry.get("dtype") != "F32":
                raise RecastError(f"{path} is damaged: {name} is missing or not float32", "Restore the right file.")
            first, end = entry["data_offsets"]
            stream.seek(start + first)
            values += struct.unpack(f"<{(end - first) // 4}f", stream.read(end - first))
    return values
