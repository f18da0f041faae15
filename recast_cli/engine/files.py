"""Files that are written whole or not at all, and safetensors that say what is wrong with them.

All metadata of a file is one key, `recast`, holding JSON with sorted keys: safetensors writes several metadata
keys in random order, and equal runs must give equal bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast_cli.engine.errors import RecastError

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "recast"
FORMAT_VERSION = 1
INDEX = ".safetensors.index.json"
"""How the name of an index ends: JSON whose `weight_map` says in which shard each tensor lies."""
CODED_VERSION = 2
"""The format of compressed bases, which a reader of format 1 would take for damaged ones."""
MEANS_VERSION = 3
"""The format of bases whose layout takes means of templates."""
TRELLIS_VERSION = 5
"""The format of bases that have integers on a trellis; the latest."""


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
            # mkstemp makes private files; a finished output has the permissions any other new file would have
            temporary.chmod(0o666 & ~umask())
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(home: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder in `home`; on success what is in it under `names` is synced and moved to `home`.

    Files replace what has their names, one after the other in the order of `names`; folders only empty ones. On error
    all is as it was. For files that are opened under their final names before they count as written.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{names[-1]}.", suffix=".tmp", dir=home))
    try:
        with naming(home / names[-1]):
            yield folder
            for path in (folder, *folder.rglob("*")):
                path.chmod((0o777 if path.is_dir() else 0o666) & ~umask())
                if path.is_file():
                    with path.open("rb") as stream:
                        os.fsync(stream.fileno())
            for name in names:
                (folder / name).replace(home / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the error of a full disk name the file that was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(path)
        raise


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
        raise RecastError(f"{path}: the folder {path.parent} does not exist", "Create it first, or choose another.")
    if path.is_dir():
        raise RecastError(f"{path} is a folder", "Give the name of a file.")
    if not os.access(path.parent, os.W_OK):
        raise RecastError(f"{path}: no permission to write in {path.parent.resolve()}", "Choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write `tensors` and `metadata` (one JSON key) to a safetensors file, atomically."""
    from recast_cli.engine.tensors import specs
    from recast_cli.engine.writer import writing

    with writing(path, specs(tensors), metadata) as writer:
        writer.write_all(tensors.items())
        writer.finish(metadata)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor name -> dtype, shape, data_offsets; `__metadata__`.

    Reads the header alone and checks the length of the file against it, without torch.

    Raises:
        RecastError: Missing, unreadable, truncated, or not a safetensors file.
    """
    path = Path(path)
    if path.is_dir():
        raise RecastError(f"{path} is a folder", "Give a file.")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= 100_000_000 or (raw := stream.read(1)) != b"{":
                raise RecastError(f"{path} is not a safetensors file", "Check the name, or convert the file.")
            if 8 + length > size:
                raise RecastError(f"{path} is truncated in its header", "Fetch or write the file again.")
            raw += stream.read(length - 1)
    except FileNotFoundError:
        raise RecastError(f"{path} does not exist", "Check the path.") from None
    except PermissionError:
        raise RecastError(f"{path}: no permission to read it", "Check its permissions.") from None
    try:
        header = json.loads(raw)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        header.get("__metadata__", {}).keys()  # an AttributeError where it is no mapping
    except (ValueError, LookupError, TypeError, AttributeError):
        raise RecastError(f"{path} has a damaged safetensors header", "Fetch or write the file again.") from None
    if 8 + length + end > size:
        raise RecastError(
            f"{path} is truncated: {8 + length + end} bytes announced, {size} there", "Fetch or write the file again."
        )
    return header


def read_metadata(path: Path, header: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What `write_tensors` put into the metadata of `path`; None where another program wrote the file."""
    raw = (header or read_header(path)).get("__metadata__", {}).get(METADATA_KEY)
    if raw is None:
        return None
    try:
        metadata = json.loads(raw)
        version, kind = metadata["format"], metadata["kind"]
    except (ValueError, KeyError, TypeError):
        raise RecastError(f"{path}: its recast metadata is damaged", "Write the file again.") from None
    if not isinstance(version, int) or version > TRELLIS_VERSION:
        raise RecastError(
            f"{path} is a {kind} of format {version}; this recast reads up to {TRELLIS_VERSION}", "Upgrade recast-cli."
        )
    return metadata


def read_index(index: Path) -> dict[str, str]:
    """Name of a tensor -> name of its shard."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError:
        raise RecastError(f"{index} does not exist", "Check the path.") from None
    except PermissionError:
        raise RecastError(f"{index}: no permission to read it", "Check its permissions.") from None
    except (ValueError, LookupError, TypeError):
        shards = None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise RecastError(f"{index} is not an index of safetensors: no weight_map in it", "Fetch it again.")
    return shards


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises RecastError as `read_header` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RecastError(f"{path} is damaged: {error}", "Fetch or write the file again.") from None
