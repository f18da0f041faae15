"""Folders of images: their classes, and what is in them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recast_cli.engine.errors import MissingFile, RecastError, option

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True)
class Item:
    """One image: its path relative to the data folder, in POSIX form, and the index of its class."""

    path: str
    label: int


def list_classes(folder: Path) -> list[str]:
    """Sorted names of the class folders in `folder`.

    Raises:
        RecastError: The folder is missing, unreadable, or has no class folders.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        hint = f"Give one with {option('data', 'DIR')}."
        raise MissingFile(f"The image folder {folder} does not exist", hint) from None
    except NotADirectoryError:
        raise RecastError(f"{folder} is a file, not an image folder", "Give a folder of class folders.") from None
    except PermissionError:
        raise RecastError(f"No permission to read the folder {folder}", "Check its permissions.") from None
    if not names:
        raise RecastError(f"{folder} has no class folders", "Lay images out as <class>/<images>.")
    return names


def list_items(root: Path, folder: str, classes: Sequence[str], known: Sequence[str]) -> list[Item]:
    """All images of the class folders in `root/folder`, sorted; labels are indices into `known`.

    Raises:
        RecastError: A class folder without images, or without permission, or a name that is not UTF-8.
    """
    items = []
    for name in classes:
        here = root / folder / name
        found = [file.relative_to(root).as_posix() for file in list_files(here)]
        if not found:
            hint = f"Put {SUFFIXES[0]} or {SUFFIXES[2]} files there."
            raise RecastError(f"The class folder {here} has no images", hint)
        for path in found:
            if path != path.encode(errors="replace").decode():
                raise RecastError(f"The name of {root / path} is not UTF-8", "Rename it, e.g. with convmv.")
        items += [Item(path, known.index(name)) for path in sorted(found)]
    return items


def list_files(folder: Path) -> Iterator[Path]:
    """The images in a folder and the folders in it, but for hidden ones; a folder that links lead to again, once."""

    def fail(error: OSError) -> None:
        raise RecastError(f"No permission to read the folder {error.filename}", "Check its permissions.") from None

    seen = set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = () if real in seen else sorted(name for name in folders if not name.startswith("."))
        for file in () if real in seen else files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                yield Path(parent) / file
        seen.add(real)
