"""The folder of a task without torch: its files, their names, the record, and what they are bound to."""

import re
from pathlib import Path
from typing import Any, cast

import yaml

from recast_cli.engine.base.header import BaseHeader
from recast_cli.engine.errors import DamagedFile, MissingFile, RecastError, option
from recast_cli.engine.storage.atomic import write_text
from recast_cli.engine.storage.header import FORMATS, read_header, read_metadata
from recast_cli.engine.task.record import FIELDS, TaskRecord

COEFFICIENTS, HEAD, ADAPTER = "coefficients.safetensors", "head.safetensors", "adapter.safetensors"
RECORD = "task.yaml"
AGAIN = f"Adapt the task again with {option('restart', True)}."
"""What to do about a damaged task."""


def files_of(record: TaskRecord) -> list[str]:
    """Names of the files that the task of a record has."""
    return [COEFFICIENTS, HEAD, *([ADAPTER] if record.get("adapter") else []), RECORD]


def check_task_name(name: str) -> str:
    """The name itself. Raises RecastError unless it can be a plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}", name) or name.endswith((".", " ")):
        hint = "Use the letters A to Z and a to z, digits, '_', and inside also '.', '-' and spaces; 100 signs at most."
        raise RecastError(f"'{name}' cannot be the name of a task", hint)
    return name


def write_record(path: Path, record: TaskRecord) -> None:
    """Write task.yaml, keys in the order given."""
    write_text(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120))


def read_record(folder: Path) -> TaskRecord:
    """The content of a task's task.yaml. Raises RecastError where the folder holds no finished task."""
    path = folder / RECORD
    if not folder.is_dir():
        others = sorted(p.parent.name for p in folder.parent.glob(f"*/{RECORD}"))
        hint = f"Tasks here: {', '.join(others)}." if others else "Make it with `recast adapt`."
        raise MissingFile(f"There is no task '{folder.name}' in {folder.parent}", hint)
    try:
        record = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        hint = "Give the same `recast adapt` command again."
        raise MissingFile(f"{folder} holds no finished task: {RECORD} is missing", hint) from None
    except PermissionError:
        raise RecastError(f"{path}: no permission to read it", "Check its permissions.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise DamagedFile(f"{path} is not valid YAML", AGAIN) from None
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in FIELDS.items()):
        raise DamagedFile(f"{path} is not a task's record", AGAIN)
    if record["format"] > FORMATS["task"]:
        raise RecastError(f"{path} is of format {record['format']}; this recast reads {FORMATS['task']}", "Upgrade.")
    return cast(TaskRecord, record)


def check_parts(folder: Path, record: TaskRecord) -> dict[str, tuple[int, ...]]:
    """Shapes of a task's tensors, from the headers of its two weight files: `coefficients`, `weight`, `bias`, and
    `places` where it chose them.

    Raises:
        RecastError: A file is missing, damaged or another base's, or lacks a tensor; or the head does not fit `record`.
    """
    headers = read_part(folder / COEFFICIENTS, "coefficients", record["base_id"])
    headers |= read_part(folder / HEAD, "head", record["base_id"])
    try:
        chosen = ["places"] if "places" in headers else []
        shapes = {name: tuple(headers[name]["shape"]) for name in ("coefficients", "weight", "bias", *chosen)}
    except KeyError as error:
        raise DamagedFile(f"{folder}: the tensor {error} is missing", AGAIN) from None
    if chosen and (shapes["places"][1:] != (2,) or shapes["places"][:1] > shapes["coefficients"]):
        raise DamagedFile(f"{folder / COEFFICIENTS} has other places than coefficients", AGAIN)
    rows, classes = shapes["weight"][:1], len(record["classes"])
    if rows != (classes,):
        has = f"{rows[0] if rows else 'no'} rows"
        raise DamagedFile(f"{folder}: the head has {has} and the record {classes} classes", AGAIN)
    return shapes


def read_part(path: Path, kind: str, base_id: str) -> dict[str, Any]:
    """The header of one file of a task, checked for its kind and the base it is bound to."""
    header = read_header(path)
    metadata = read_metadata(path, header)
    found = metadata["kind"] if metadata else "safetensors"
    if metadata is None or found != kind:
        raise RecastError(f"{path} is a {found} file, and a task's {kind} are wanted here", "Restore the right file.")
    if (bound := metadata.get("base_id")) != base_id:
        raise RecastError(f"{path} belongs to base {bound}, the task's record to {base_id}", "Restore it.")
    return header


def check_bound(base_id: str, coefficients: int | None, base: BaseHeader, what: str) -> None:
    """Raise RecastError unless the task `what`, of the base called `base_id`, is one of `base`.

    `coefficients` are how many it has in layout order; None where it chose them.
    """
    if base_id != base.base_id:
        what = f"{what} belongs to base {base_id}, but {base.path or base.source} is base {base.base_id}"
        raise RecastError(what, f"Give the task's own base with {option('base')}, or adapt the task again on this one.")
    if coefficients not in (None, base.layout.coefficients):
        wanted = base.layout.coefficients
        raise DamagedFile(f"{what} has {coefficients} coefficients, the base wants {wanted}", AGAIN)
