"""Folders of images: what is in them, and decoding it once to uint8 at the working size."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor

from recast_cli.engine.errors import RecastError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
IN_MEMORY = 2 * 2**30
"""Decoded pictures beyond this many bytes are kept in a temporary file that the system maps into memory."""


@dataclass(frozen=True)
class Item:
    """One image: its path relative to the data folder, in POSIX form, and the index of its class."""

    path: str
    label: int


@dataclass
class Images:
    """Decoded images.

    Attributes:
        pixels: (N, 3, H, W) uint8, prepared as the network's own data config says, before normalisation.
        labels: (N,) int64.
        paths: Relative paths of the N images.
        skipped: Paths of images that could not be read.
    """

    pixels: Tensor
    labels: Tensor
    paths: list[str]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def list_classes(folder: Path) -> list[str]:
    """Sorted names of the class folders in `folder`.

    Raises:
        RecastError: The folder is missing, unreadable, or has no class folders.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        raise RecastError(f"The image folder {folder} does not exist", "Give one with --data DIR.") from None
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

    def fail(error: OSError) -> None:
        raise RecastError(f"No permission to read the folder {error.filename}", "Check its permissions.") from None

    items = []
    for name in classes:
        here = root / folder / name
        found = [
            (Path(parent) / file).relative_to(root).as_posix()
            for parent, _, files in os.walk(here, onerror=fail, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
        if not found:
            raise RecastError(
                f"The class folder {here} has no images", f"Put {SUFFIXES[0]} or {SUFFIXES[2]} files there."
            )
        for path in found:
            if path != path.encode(errors="replace").decode():
                raise RecastError(f"The name of {root / path} is not UTF-8", "Rename it, e.g. with convmv.")
        items += [Item(path, known.index(name)) for path in sorted(found)]
    return items


def preprocessing(
    data: dict[str, Any], image_size: int | None = None
) -> tuple[Callable[[Any], Tensor], tuple[int, int, int]]:
    """timm's evaluation transform up to a uint8 tensor, and that tensor's shape (3, H, W), for a data config."""
    height, width = (image_size, image_size) if image_size else data["input_size"][1:]
    shape = (3, int(height), int(width))
    transform = create_transform(
        input_size=shape,
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
        mean=data["mean"],
        std=data["std"],
        normalize=False,  # timm then ends with a uint8 tensor
    )
    return transform, shape


def decode(
    root: Path,
    items: Sequence[Item],
    data: dict[str, Any],
    image_size: int | None = None,
    on_bad_image: str = "skip",
    progress: Callable[[int, int, str], None] | None = None,
) -> Images:
    """Read every image once, in parallel.

    Args:
        root: The data folder.
        items: What to read.
        data: timm's data config of the network.
        image_size: Height and width in pixels; default: the config's.
        on_bad_image: `skip` counts and names unreadable images, `fail` raises at the first.
        progress: Called after every image.

    Raises:
        RecastError: No image could be read, or one could not and `on_bad_image` is `fail`.
    """
    transform, shape = preprocessing(data, image_size)
    pixels = pixel_store((len(items), *shape))

    def read(place: int) -> str | None:
        try:
            pixels[place] = open_image(root / items[place].path, transform)
        except RecastError as error:
            return error.what
        return None

    problems: list[str | None] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for problem in pool.map(read, range(len(items))):
                if problem and on_bad_image == "fail":
                    raise RecastError(problem, "Repair or remove it, or use --on-bad-image skip.")
                problems.append(problem)
                if progress:
                    progress(len(problems), len(items), "reading images")
        finally:
            pool.shutdown(cancel_futures=True)
    good = [place for place, problem in enumerate(problems) if problem is None]
    if not good:
        raise RecastError(f"Not one of the {len(items)} images in {root} can be read", "Check the files.")
    return Images(
        pixels=pixels if len(good) == len(items) else pixels[good],
        labels=torch.tensor([items[place].label for place in good]),
        paths=[items[place].path for place in good],
        skipped=[items[place].path for place, problem in enumerate(problems) if problem is not None],
    )


def open_image(path: Path, transform: Callable[[Any], Tensor]) -> Tensor:
    """One image as uint8 (3, H, W). Raises RecastError where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))
    except FileNotFoundError:
        raise RecastError(f"{path} does not exist", "Check the path.") from None
    except IsADirectoryError:
        raise RecastError(f"{path} is a folder", "Give image files.") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecastError(f"{path} is not a readable image ({reason[:80]})", "Repair or remove it.") from None


def pixel_store(shape: tuple[int, ...]) -> Tensor:
    """Room for uint8 of `shape`: in memory, or in a temporary file that needs no memory of its own."""
    if int(np.prod(shape)) <= IN_MEMORY:
        return torch.empty(shape, dtype=torch.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle; the disk space goes with it
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a bus error later
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=shape))


def normalise(pixels: Tensor, data: dict[str, Any]) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 with the config's mean and std, on the same device."""
    mean = torch.tensor(data["mean"], device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(data["std"], device=pixels.device).view(1, -1, 1, 1)
    return (pixels.float() / 255 - mean) / std
