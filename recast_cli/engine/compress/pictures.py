"""Pictures to calibrate with: any, without labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import SUFFIXES, Item, decode
from recast_cli.engine.network import Architecture

MOST = 256
"""More pictures than that change little and take memory; of a larger folder they are taken at even distances."""


def list_pictures(folder: Path) -> list[Item]:
    """At most `MOST` pictures in a folder and below it, in the order of their names, however they lie in there.

    Raises:
        RecastError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise RecastError(f"--calibrate {folder} is no folder", "Give one with a few hundred pictures.")
    found = sorted(
        (Path(parent) / file).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    )
    if not found:
        raise RecastError(f"--calibrate {folder} has no pictures", "Give a folder with a few hundred, labelled or not.")
    return (
        [Item(found[place * len(found) // MOST], 0) for place in range(MOST)]
        if len(found) > MOST
        else [Item(path, 0) for path in found]
    )


def read_pictures(
    folder: Path, architecture: Architecture, progress: Callable[[int, int, str], None] | None = None
) -> Tensor:
    """The pictures of `list_pictures` as the network sees them: (N, 3, H, W) uint8."""
    return decode(folder, list_pictures(folder), architecture.data, progress=progress).pixels
