"""A task: fewer than 50 coefficients bound to a base, a classification head, and a readable record of both.

Where an adapter was asked for, a third file holds what it learned.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recast_cli.engine.errors import RecastError
from recast_cli.engine.storage.atomic import write_text
from recast_cli.engine.storage.header import FORMAT_VERSION, read_header, read_metadata
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.storage.writer import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from recast_cli.engine.base.base import Base
    from recast_cli.engine.base.header import Outline
    from recast_cli.engine.model.adapters.adapter import Adapter

COEFFICIENTS, HEAD, ADAPTER, RECORD = (
    "coefficients.safetensors",
    "head.safetensors",
    "adapter.safetensors",
    "task.yaml",
)
FIELDS = {
    "format": int,
    "name": str,
    "base_id": str,
    "data": str,
    "image_size": int,
    "classes": list,
    "split": dict,
    "options": dict,
    "metrics": dict,
}
"""What a record must have; the rest is for people."""


@dataclass(frozen=True)
class Task:
    """What `adapt` learns.

    Attributes:
        name: Name of the task and of its folder.
        base_id: The base it belongs to.
        vector: Coefficients in layout order: (layout.coefficients,) float32.
        weight: Of the head: (classes, head_hidden_size) float32.
        bias: Of the head: (classes,) float32.
        record: The content of task.yaml: classes in order, split, options, metrics, versions, dates, timings.
        adapter: What it learned beside the coefficients, where an adapter was asked for.
    """

    name: str
    base_id: str
    vector: Tensor
    weight: Tensor
    bias: Tensor
    record: dict[str, Any]
    adapter: Adapter | None = None

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the head's rows."""
        return list(self.record["classes"])

    @property
    def image_size(self) -> int:
        """Height and width of the images it was adapted at, in pixels."""
        return int(self.record["image_size"])


def files_of(record: dict[str, Any]) -> list[str]:
    """Names of the files that the task of a record has."""
    return [COEFFICIENTS, HEAD, *([ADAPTER] if record.get("adapter") else []), RECORD]


def check_task_name(name: str) -> str:
    """The name itself. Raises RecastError unless it can be a plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,99}", name) or name.endswith((".", " ")):
        raise RecastError(
            f"'{name}' cannot be the name of a task",
            "Use the letters A to Z and a to z, digits, '_', and inside also '.', '-' and spaces; 100 signs at most.",
        )
    return name


def save_task(task: Task, folder: Path) -> None:
    """Write the files of a task; the record last, as its presence says that the task is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    bound = {"format": FORMAT_VERSION, "base_id": task.base_id}
    write_tensors(folder / COEFFICIENTS, {"coefficients": task.vector}, {"kind": "coefficients", **bound})
    write_tensors(folder / HEAD, {"weight": task.weight, "bias": task.bias}, {"kind": "head", **bound})
    if task.adapter is None:
        (folder / ADAPTER).unlink(missing_ok=True)
    else:
        save_adapter(folder / ADAPTER, task.adapter, bound)
    write_record(folder / RECORD, task.record)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write task.yaml, keys in the order given."""
    write_text(path, yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120))


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a task's task.yaml. Raises RecastError where the folder holds no finished task."""
    path = folder / RECORD
    if not folder.is_dir():
        others = sorted(p.parent.name for p in folder.parent.glob(f"*/{RECORD}"))
        hint = f"Tasks here: {', '.join(others)}." if others else "Make it with `recast adapt`."
        raise RecastError(f"There is no task '{folder.name}' in {folder.parent}", hint)
    try:
        record = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise RecastError(
            f"{folder} holds no finished task: {RECORD} is missing", "Give the same `recast adapt` command again."
        ) from None
    except PermissionError:
        raise RecastError(f"{path}: no permission to read it", "Check its permissions.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise RecastError(f"{path} is not valid YAML", "Adapt the task again with --restart.") from None
    if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in FIELDS.items()):
        raise RecastError(f"{path} is not a task's record", "Adapt the task again with --restart.")
    if record["format"] > FORMAT_VERSION:
        raise RecastError(f"{path} is of format {record['format']}; this recast reads {FORMAT_VERSION}", "Upgrade.")
    return record


def load_task(folder: Path, base: Base | None = None) -> Task:
    """Read a task.

    Args:
        folder: Of the task, e.g. `tasks/flowers`.
        base: Where given, the task must belong to it.

    Raises:
        RecastError: Missing or damaged files, or a task of another base.
    """
    record = read_record(folder)
    shapes = check_parts(folder, record)
    if base is not None:
        check_bound(record["base_id"], math.prod(shapes["coefficients"]), base, str(folder))
    head = read_tensors(folder / HEAD)
    return Task(
        name=record["name"],
        base_id=record["base_id"],
        vector=read_tensors(folder / COEFFICIENTS)["coefficients"],
        weight=head["weight"],
        bias=head["bias"],
        record=record,
        adapter=load_adapter(folder, record),
    )


def load_adapter(folder: Path, record: dict[str, Any]) -> Adapter | None:
    """What a task learned in an adapter, from its file; None for a task without one."""
    if not record.get("adapter"):
        return None
    path = folder / ADAPTER
    read_part(path, "adapter", record["base_id"])
    adapter = read_adapter(path)
    if (adapter.name, adapter.options) != (record["adapter"]["name"], record["adapter"]["options"]):
        raise RecastError(f"{path} is not the adapter that {RECORD} names", "Restore the right file.")
    return adapter


def save_adapter(path: Path, adapter: Adapter, bound: dict[str, Any]) -> None:
    """Write what was learned in an adapter; `bound` says in which format and to which base it belongs."""
    write_tensors(
        path, adapter.tensors, {"kind": "adapter", **bound, "adapter": adapter.name, "options": adapter.options}
    )


def read_adapter(path: Path) -> Adapter:
    """The inverse of `save_adapter`. Raises RecastError for a damaged file."""
    from recast_cli.engine.model.adapters.adapter import ADAPTERS, Adapter

    metadata = read_metadata(path) or {}
    name, options = metadata.get("adapter"), metadata.get("options")
    if name not in ADAPTERS or not isinstance(options, dict):
        raise RecastError(f"{path}: its recast metadata is damaged", "Adapt the task again with --restart.")
    return Adapter(name, options, read_tensors(path))


def check_parts(folder: Path, record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a task's tensors, `coefficients`, `weight` and `bias`, from the headers of its two weight files.

    Raises:
        RecastError: A file is missing, damaged or another base's, or lacks a tensor; or the head does not fit `record`.
    """
    headers = read_part(folder / COEFFICIENTS, "coefficients", record["base_id"])
    headers |= read_part(folder / HEAD, "head", record["base_id"])
    try:
        shapes = {name: tuple(headers[name]["shape"]) for name in ("coefficients", "weight", "bias")}
    except KeyError as error:
        raise RecastError(f"{folder}: the tensor {error} is missing", "Adapt the task again with --restart.") from None
    rows, classes = shapes["weight"][:1], len(record["classes"])
    if rows != (classes,):
        raise RecastError(
            f"{folder}: the head has {rows[0] if rows else 'no'} rows and the record {classes} classes",
            "Adapt the task again with --restart.",
        )
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


def check_bound(base_id: str, coefficients: int, base: Base | Outline, what: str) -> None:
    """Raise RecastError unless a task of the base called `base_id`, with so many coefficients, is one of `base`."""
    if base_id != base.base_id:
        raise RecastError(
            f"{what} belongs to base {base_id}, but {base.path or base.source} is base {base.base_id}",
            "Give the task's own base with --base, or adapt the task again on this one.",
        )
    if coefficients != base.layout.coefficients:
        raise RecastError(
            f"{what} has {coefficients} coefficients, the base wants {base.layout.coefficients}",
            "Adapt the task again with --restart.",
        )
