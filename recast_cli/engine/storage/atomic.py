"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from recast_cli.engine.errors import MissingFile, RecastError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that takes no more, whose texts do not say which file it was."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`, on error removed.

    Raises:
        RecastError: The parent folder is missing, or `path` is a folder.
    """
    path = Path(path)
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with naming(path):
            yield temporary
            release(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(home: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder in `home`; on success what is in it under `names` is synced and moved to `home`.

    Files replace what has their names, one after the other in the order of `names`; folders only empty ones. On error
    all is as it was. For files that are opened under their final names before they count as written.
    """
    temporary = tempfile.TemporaryDirectory(".tmp", f".{names[-1]}.", home, ignore_cleanup_errors=True)
    with temporary, naming(home / names[-1]):
        folder = Path(temporary.name)
        yield folder
        for path in (folder, *folder.rglob("*")):
            release(path)
        for name in names:
            (folder / name).replace(home / name)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the error of a full disk name the file that was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(path)
        raise


def release(path: Path) -> None:
    """Give a private temporary file or folder the permissions that any other new one would have, and sync a file."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
    if path.is_file():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def check_new_folder(path: Path) -> None:
    """Raise RecastError unless a folder can be put at `path`: nothing is there, or an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise RecastError(f"{path} is there already", "Remove it, or give the name of a new folder.")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise RecastError unless a file can be put at `path`; called before long work, so that none of it is lost."""
    if not path.parent.is_dir():
        raise MissingFile(f"{path}: the folder {path.parent} does not exist", "Create it first, or choose another.")
    if path.is_dir():
        raise RecastError(f"{path} is a folder", "Give the name of a file.")
    if not os.access(path.parent, os.W_OK):
        raise RecastError(f"{path}: no permission to write in {path.parent.resolve()}", "Choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
