"""The cache of decoded images: one safetensors file for a list of images and a way to prepare them.

A file is built under a temporary name, with its disk space reserved and a lock held, and renamed when it is whole: two
runs that build the same file do not disturb each other, and a killed one leaves nothing but a file that no run locks.
Whatever goes wrong here costs time, not results: the images are then decoded as if there were no cache.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

from recast_cli.engine.errors import RecastError, option
from recast_cli.engine.storage.atomic import atomic, check_writable
from recast_cli.engine.storage.header import FORMATS, METADATA_KEY, to_json

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_CACHE_SIZE = 10 * 10**9
"""Bytes that all files of the cache may take together."""
FORMAT = FORMATS["images"]
HEADER = 4096
"""Bytes before the pixels: the header is written last, when it is known how many images could be read."""
FILES = ("images-*.safetensors", ".images-*.tmp", "pictures-*.safetensors", ".pictures-*.tmp")
"""What lies in the cache; the last two were made by versions that looked for other names, and go in their turn."""
STALE = 60
"""Seconds after which a temporary file that no run has locked is a killed run's."""


class CacheWarning(RecastError, UserWarning):
    """The cache is not used and the run goes on without; the text is one line for the user."""


def cache_folder() -> Path:
    """`$RECAST_CACHE`, else `recast` where this system keeps caches: on Linux `$XDG_CACHE_HOME` or `~/.cache`."""
    named = os.environ.get("RECAST_CACHE") or platformdirs.user_cache_dir("recast")
    return Path(os.path.expanduser(named))  # where there is no home the `~` stays, and `build` makes no such folder


def cache_file(root: Path, paths: Sequence[str], preparation: Any) -> Path:
    """Where images are cached, named after all that decides their pixels.

    Args:
        root: The data folder.
        paths: Relative paths of the images, in order; their sizes and times count too.
        preparation: Whatever else decides the pixels, as JSON.
    """
    digest = hashlib.sha256(to_json([str(root.resolve()), preparation]).encode(errors="surrogateescape"))
    for path in paths:
        try:
            found = os.stat(os.path.join(root, path))  # a Path for each of a million images would take seconds
            digest.update(f"\0{path}\0{found.st_size}\0{found.st_mtime_ns}".encode())
        except OSError:
            digest.update(f"\0{path}\0".encode())
    return cache_folder() / f"images-{digest.hexdigest()[:32]}.safetensors"


def load_cached(path: Path) -> tuple[Tensor, list[bool]] | None:
    """What `path` caches, or None where it is no whole file of this format; reads no pixels.

    Returns:
        Pixels (N, 3, H, W) uint8, mapped copy-on-write, so that nothing can change the file; and which images of the
        list could be read: N of them.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = json.loads(file.metadata()[METADATA_KEY])
            if found["format"] != FORMAT or found["key"] not in path.name:
                return None
            return file.get_tensor("pixels"), file.get_tensor("readable").tolist()
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None


def build(
    path: Path, shape: tuple[int, ...], bound: int, fill: Callable[[np.ndarray], list[bool]]
) -> tuple[Tensor, list[bool]] | None:
    """Make the file `path`, and return what `load_cached` does; None, after a CacheWarning, where it cannot be made.

    Args:
        path: From `cache_file`.
        shape: (images in the list, 3, H, W).
        bound: Bytes that all files of the cache may take together.
        fill: Writes the readable images to the front of an array of `shape`, and says which they are.
    """
    import fcntl

    size = HEADER + int(np.prod(shape)) + shape[0]
    try:
        if size > bound:
            raise RecastError(f"they take {size / 1e9:.3g} GB, and {option('cache_size')} is {bound / 1e9:.3g} GB")
        if path.parts[0] == "~":
            raise RecastError("this user has no home folder and no RECAST_CACHE")
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
        if trim(path.parent, bound - size) > bound - size:
            raise RecastError("other runs are filling it")
    except (OSError, RecastError) as error:
        warn(path.parent, error)
        return None
    result = None
    try:
        with atomic(path) as temporary, temporary.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the end: this run is alive
            reserve(file.fileno(), size)
            readable = fill(np.memmap(file, np.uint8, "r+", HEADER, shape))
            seal(file.fileno(), path.stem.removeprefix("images-"), shape, readable)
            result = load_cached(temporary)
            os.fsync(file.fileno())  # without it, a power cut may leave a whole file of black images
    except OSError as error:  # where `fill` is to blame, it fails again without a cache
        warn(path.parent, error)
    return result


def seal(file: int, key: str, shape: tuple[int, ...], readable: list[bool]) -> None:
    """Cut the file behind the readable images, say which they are, and write the header."""
    rows = (sum(readable), *shape[1:])
    end = int(np.prod(rows))
    header = {
        "__metadata__": {METADATA_KEY: to_json({"format": FORMAT, "key": key, "kind": "images"})},
        "pixels": {"dtype": "U8", "shape": rows, "data_offsets": [0, end]},
        "readable": {"dtype": "BOOL", "shape": [len(readable)], "data_offsets": [end, end + len(readable)]},
    }
    os.ftruncate(file, HEADER + end)
    os.pwrite(file, bytes(readable), HEADER + end)
    os.pwrite(file, struct.pack("<Q", HEADER - 8) + to_json(header).encode().ljust(HEADER - 8), 0)


def keep(path: Path, bound: int) -> None:
    """Note that `path` was used just now, and hold the cache to `bound` bytes."""
    try:
        os.utime(path)
        trim(path.parent, bound)
    except OSError:
        pass  # a cache that another user owns can be read all the same


def trim(folder: Path, bound: int) -> int:
    """Remove what killed runs left, then the least recently used files until the rest is `bound` bytes or fewer.

    Returns:
        Bytes that are left: more than `bound` only where runs are writing at this moment.
    """
    files = []
    for path in [path for pattern in FILES for path in folder.glob(pattern)]:
        try:
            if path.suffix == ".tmp" and abandoned(path):
                path.unlink()
            else:
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:
            continue  # another run was faster
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total > bound and path.suffix != ".tmp":
            path.unlink(missing_ok=True)
            total -= size
    return total


def abandoned(path: Path) -> bool:
    """Whether no run writes the temporary file `path` any more."""
    import fcntl

    if time.time() - path.stat().st_mtime < STALE:
        return False  # perhaps made this moment and not locked yet
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def reserve(file: int, size: int) -> None:
    """Make a file `size` bytes long, with disk space for all: a full disk is an error now, not a bus error later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    elif os.name == "posix" and shutil.disk_usage(file).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        os.ftruncate(file, size)


def warn(folder: Path, error: OSError | RecastError) -> None:
    """Say why nothing is cached, as a CacheWarning."""
    reason = error.marked[0] if isinstance(error, RecastError) else error.strerror or error
    warnings.warn(CacheWarning(f"decoded images are not cached in {folder}: {reason}"), stacklevel=2)
