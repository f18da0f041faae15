"""The header of a safetensors file, read without torch, with errors that say what is wrong with it.

All metadata of a file is one key, `recast`, holding JSON with sorted keys: safetensors writes several metadata
keys in random order, and equal runs must give equal bytes.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recast_cli.engine.errors import DamagedFile, MissingFile, RecastError

METADATA_KEY = "recast"
FORMATS = {"base": 5, "coefficients": 3, "head": 1, "adapter": 1, "probe": 1, "images": 1, "pictures": 1, "task": 1}
"""Kind of a file -> the latest of its formats that this version reads and writes."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of floating-point tensors, as safetensors calls them."""
INDEX = ".safetensors.index.json"
"""How the name of an index ends: JSON whose `weight_map` says in which shard each tensor lies."""


def to_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


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
                raise DamagedFile(f"{path} is truncated in its header", "Fetch or write the file again.")
            raw += stream.read(length - 1)
    except FileNotFoundError:
        raise MissingFile(f"{path} does not exist", "Check the path.") from None
    except PermissionError:
        raise RecastError(f"{path}: no permission to read it", "Check its permissions.") from None
    try:
        header = json.loads(raw)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        header.get("__metadata__", {}).keys()  # an AttributeError where it is no mapping
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DamagedFile(f"{path} has a damaged safetensors header", "Fetch or write the file again.") from None
    if 8 + length + end > size:
        hint = "Fetch or write the file again."
        raise DamagedFile(f"{path} is truncated: {8 + length + end} bytes announced, {size} there", hint)
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
        raise DamagedFile(f"{path}: its recast metadata is damaged", "Write the file again.") from None
    if not isinstance(kind, str) or kind not in FORMATS:
        raise RecastError(f"{path} is a file of an unknown kind, {kind}", "Upgrade recast-cli.")
    if not isinstance(version, int) or version > FORMATS[kind]:
        hint = "Upgrade recast-cli."
        raise RecastError(f"{path} is a {kind} of format {version}; this recast reads up to {FORMATS[kind]}", hint)
    return metadata


def read_index(index: Path) -> dict[str, str]:
    """Name of a tensor -> name of its shard."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError:
        raise MissingFile(f"{index} does not exist", "Check the path.") from None
    except PermissionError:
        raise RecastError(f"{index}: no permission to read it", "Check its permissions.") from None
    except (ValueError, LookupError, TypeError):
        shards = None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise DamagedFile(f"{index} is not an index of safetensors: no weight_map in it", "Fetch it again.")
    return shards


def read_numbers(path: Path, names: Sequence[str], dtype: str = "F32") -> list[Any]:
    """The values of tensors of a file, all F32 or all I32, in row order and one tensor after the other.

    Raises:
        RecastError: As `read_header`, or a tensor is missing or of another type.
    """
    header = read_header(path)
    values: list[Any] = []
    with path.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        for name in names:
            entry = header.get(name, {})
            if entry.get("dtype") != dtype:
                raise DamagedFile(f"{path} is damaged: {name} is missing or not {dtype}", "Restore the right file.")
            first, end = entry["data_offsets"]
            stream.seek(start + first)
            letter = {"F32": "f", "I32": "i"}[dtype]
            values += struct.unpack(f"<{(end - first) // 4}{letter}", stream.read(end - first))
    return values
