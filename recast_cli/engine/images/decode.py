"""Images, decoded once to uint8 at the working size."""

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

from recast_cli.engine.errors import DamagedFile, MissingFile, OptionError, RecastError, option
from recast_cli.engine.images.cache import DEFAULT_CACHE_SIZE, build, cache_file, keep, load_cached, reserve
from recast_cli.engine.images.folders import Item
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.progress import Progress

IN_MEMORY = 2 * 2**30
"""Decoded images beyond this many bytes are kept in a temporary file that the system maps into memory."""
BLOCK = 4096
"""Images that the threads are given at a time: each takes memory while it waits."""
LONGEST = 1000
"""Times that an image may be longer than wide: its shorter side is scaled to the working size, the other with it."""
SIXTEEN_BITS = {"PNG": "I", "PPM": "I"}
"""Formats whose images of this mode are 16 bits deep, as those of the modes `I;16` are in any format."""


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


def evaluation_transform(preprocessing: Preprocessing) -> Callable[[Any], Tensor]:
    """timm's evaluation transform up to a uint8 tensor (3, H, W).

    Raises:
        RecastError: The network does not take images of three channels.
    """
    if (channels := preprocessing.input_size[0]) != 3:
        raise RecastError(f"The network takes images of {channels} channels", "Images have 3: use another network.")
    return create_transform(**vars(preprocessing), normalize=False)  # timm then ends with a uint8 tensor


def preparation(preprocessing: Preprocessing) -> dict[str, Any]:
    """All that decides the pixels beside the image: the size (3, H, W) among others, and whose code."""
    import PIL
    import timm
    import torchvision

    return {
        "size": list(preprocessing.input_size),
        **{name: getattr(preprocessing, name) for name in ("interpolation", "crop_pct", "crop_mode")},
        # no other mode paints with it
        "border": list(preprocessing.mean) if preprocessing.crop_mode == "border" else None,
        "depth": 8,  # not noted by versions that made deeper images white
        "versions": [PIL.__version__, timm.__version__, torchvision.__version__],
    }


def decode(
    root: Path,
    items: Sequence[Item],
    preprocessing: Preprocessing,
    on_bad_image: str = "skip",
    progress: Progress | None = None,
    *,
    cache_size: int | None = None,
) -> Images:
    """Read every image once, in parallel, or map what an earlier run has read.

    Args:
        root: The data folder.
        items: What to read.
        preprocessing: How the network wants them.
        on_bad_image: `skip` counts and names unreadable images, `fail` raises at the first.
        progress: Called after every image that is read.
        cache_size: Bytes that all cached files may take together; 0 for no cache; default: DEFAULT_CACHE_SIZE.

    Raises:
        RecastError: No image could be read, one could not and `on_bad_image` is `fail`, or that is another word.
    """
    if on_bad_image not in ("skip", "fail"):
        raise OptionError("on_bad_image", f"{on_bad_image} is unknown", "Use skip or fail.")
    cache_size = DEFAULT_CACHE_SIZE if cache_size is None else cache_size
    transform, shape = evaluation_transform(preprocessing), (len(items), *preprocessing.input_size)
    paths = [item.path for item in items]

    def read(place: int) -> Tensor | str:
        """An image, or what is wrong with it."""
        try:
            return open_image(root / paths[place], transform)
        except RecastError as error:
            if on_bad_image == "fail":
                hint = f"Repair or remove it, or use {option('on_bad_image', 'skip')}."
                raise type(error)(error.what, hint) from None
            return error.what

    def fill(rows: np.ndarray) -> list[bool]:
        readable = read_all(read, rows, progress)
        if not any(readable):
            raise RecastError(f"Not one of the {len(items)} images in {root} can be read", "Check the files.")
        return readable

    found = None
    if cache_size and items and os.name == "posix":  # elsewhere there is no flock
        path = cache_file(root, paths, preparation(preprocessing))
        found = load_cached(path)
        # only an image that still cannot be read may be missing; where that is an error, reading it says so again
        if found and not any(isinstance(read(place), Tensor) for place, good in enumerate(found[1]) if not good):
            keep(path, cache_size)
        else:
            found = build(path, shape, cache_size, fill)
    if not found:
        rows = pixel_store(shape)
        readable = fill(rows)
        found = torch.from_numpy(rows[: sum(readable)]), readable
    pixels, readable = found
    return Images(
        pixels=pixels,
        labels=torch.tensor([item.label for item, good in zip(items, readable, strict=True) if good]),
        paths=[path for path, good in zip(paths, readable, strict=True) if good],
        skipped=[path for path, good in zip(paths, readable, strict=True) if not good],
    )


def read_all(read: Callable[[int], Tensor | str], rows: np.ndarray, progress: Progress | None = None) -> list[bool]:
    """Read every image, in parallel; those that can be read end up at the front of `rows`, in order.

    Args:
        read: Place of an image -> the image, uint8 (3, H, W), or what is wrong with it. What it raises ends it all.
        rows: (N, 3, H, W) uint8, to be filled.
        progress: Called after every image.

    Returns:
        Which images could be read.
    """

    def store(place: int) -> bool:
        image = read(place)
        if isinstance(image, Tensor):
            rows[place] = image.numpy()  # torch would copy with threads of its own, in each of these threads
        return isinstance(image, Tensor)

    readable: list[bool] = []
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(rows), BLOCK):
            # whatever is raised here ends `map`, which then cancels all that no thread has begun
            for good in pool.map(store, range(start, min(start + BLOCK, len(rows)))):
                readable.append(good)
                if progress:
                    progress(len(readable), len(rows), "reading images")
    for row, place in enumerate(place for place, good in enumerate(readable) if good):
        if row != place:
            rows[row] = rows[place]
    return readable


def open_image(path: Path, transform: Callable[[Any], Tensor]) -> Tensor:
    """One image as uint8 (3, H, W). Raises RecastError where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError(f"{image.size[0]} x {image.size[1]} pixels are no shape to scale")
            return transform(eight_bits(image).convert("RGB"))
    except FileNotFoundError:
        raise MissingFile(f"{path} does not exist", "Check the path.") from None
    except IsADirectoryError:
        raise RecastError(f"{path} is a folder", "Give image files.") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedFile(f"{path} is not a readable image ({reason[:80]})", "Repair or remove it.") from None


def eight_bits(image: Any) -> Any:
    """A Pillow image whose numbers are no larger than 8 bits hold; of 16 bits the high ones.

    Pillow would clip what is larger to white. An image of 8 bits in a deeper format stays as it is.

    Raises:
        ValueError: The numbers go beyond 8 bits, and nothing says which one is white.
    """
    from PIL import Image

    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    if not deep or (image.mode != "F" and image.getextrema()[1] <= 255):
        return image
    if image.mode in ("I", "F") and SIXTEEN_BITS.get(image.format) != image.mode:
        raise ValueError("no 8 or 16 bits a channel: save it with 8")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def pixel_store(shape: tuple[int, ...]) -> np.ndarray:
    """Room for uint8 of `shape`: in memory, or in a temporary file that needs no memory of its own."""
    size = int(np.prod(shape))
    if size <= IN_MEMORY:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle; the disk space goes with it
        reserve(file.fileno(), size)
        return np.memmap(file, np.uint8, "r+", shape=shape)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
