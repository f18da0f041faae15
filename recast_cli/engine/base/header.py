"""The coefficients of a base without its weights and without torch, which takes longer to import than to read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recast_cli.engine.errors import DamagedFile, RecastError
from recast_cli.engine.layout.layout import Layout, coefficient_key
from recast_cli.engine.storage.header import read_floats, read_metadata


@dataclass(frozen=True)
class BaseHeader:
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


def read_base_header(path: Path) -> BaseHeader:
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
        raise DamagedFile(f"{path}: its recast metadata is damaged", "Run `recast mimic` again.")
    return BaseHeader(layout, vector, metadata["base_id"], metadata["source"], path)
