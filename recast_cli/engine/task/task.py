"""A task: fewer than 50 coefficients bound to a base, a classification head, and a readable record of both.

Where an adapter was asked for, a third file holds what it learned.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from recast_cli.engine.base.base import Base
from recast_cli.engine.base.chosen import check_count, check_places
from recast_cli.engine.errors import DamagedFile
from recast_cli.engine.model.adapters.adapter import ADAPTERS, Adapter
from recast_cli.engine.storage.header import FORMATS, read_metadata
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.storage.writer import write_tensors
from recast_cli.engine.task.folder import (
    ADAPTER,
    AGAIN,
    COEFFICIENTS,
    HEAD,
    RECORD,
    check_bound,
    check_parts,
    read_part,
    read_record,
    write_record,
)
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.record import TaskRecord

OF_LAYOUT, OF_ENTRIES = 1, 2
"""Formats of a file of coefficients in layout order, and of chosen entries alone; FORMATS has that of both."""


@dataclass(frozen=True)
class Task:
    """What `adapt` learns.

    Attributes:
        name: Name of the task and of its folder.
        base_id: The base it belongs to.
        vector: Coefficients in layout order, (layout.coefficients,); or (m + k,), what is added to those and at k
            `places`, see `Base.split`; float32.
        weight: Of the head: (classes, head_hidden_size) float32.
        bias: Of the head: (classes,) float32.
        record: The content of task.yaml: classes in order, split, options, metrics, versions, dates, timings.
        adapter: What it learned beside the coefficients, where an adapter was asked for.
        places: (k, 2) int32, the entries that the task chose; None where it moves the layout's coefficients alone.
    """

    name: str
    base_id: str
    vector: Tensor
    weight: Tensor
    bias: Tensor
    record: TaskRecord
    adapter: Adapter | None = None
    places: Tensor | None = None

    @property
    def head(self) -> Head:
        """Weight and bias as the function from features to logits that they are."""
        return Head(self.weight, self.bias)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the head's rows."""
        return list(self.record["classes"])

    @property
    def image_size(self) -> int:
        """Height and width of the images it was adapted at, in pixels."""
        return int(self.record["image_size"])


def save_task(task: Task, folder: Path) -> None:
    """Write the files of a task; the record last, as its presence says that the task is finished.

    Raises:
        OSError: The folder cannot be written, among others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    save_coefficients(folder / COEFFICIENTS, task.vector, task.places, task.base_id)
    save_head(folder / HEAD, task.head, task.base_id)
    if task.adapter is None:
        (folder / ADAPTER).unlink(missing_ok=True)
    else:
        save_adapter(folder / ADAPTER, task.adapter, task.base_id)
    write_record(folder / RECORD, task.record)


def load_task(folder: Path, base: Base | None = None) -> Task:
    """Read a task.

    Args:
        folder: Of the task, e.g. `tasks/flowers`.
        base: Where given, the task must belong to it.

    Returns:
        The task, its tensors float32 on the CPU.

    Raises:
        RecastError: Missing or damaged files, or a task of another base.

    Example:
        >>> task = load_task(Path("tasks/flowers"), base)
        >>> task.vector.shape, task.classes, task.image_size  # in pixels
        (torch.Size([48]), ['daisy', 'poppy', 'rose'], 32)
    """
    record = read_record(folder)
    shapes = check_parts(folder, record)
    coefficients, head = read_tensors(folder / COEFFICIENTS), read_tensors(folder / HEAD)
    places = coefficients.get("places")
    if base is not None:
        numbers = math.prod(shapes["coefficients"])
        check_bound(record["base_id"], numbers if places is None else None, base, str(folder))
        if places is not None:
            check_places(places.tolist(), base.entries, str(folder / COEFFICIENTS))
            check_count(numbers - len(places), base.layout, str(folder / COEFFICIENTS))
    return Task(
        name=record["name"],
        base_id=record["base_id"],
        vector=coefficients["coefficients"],
        weight=head["weight"],
        bias=head["bias"],
        record=record,
        adapter=load_adapter(folder, record),
        places=places,
    )


def load_adapter(folder: Path, record: TaskRecord) -> Adapter | None:
    """What a task learned in an adapter, from its file; None for a task without one."""
    about = record.get("adapter")
    if not about:
        return None
    path = folder / ADAPTER
    read_part(path, "adapter", record["base_id"])
    adapter = read_adapter(path)
    if (adapter.name, adapter.options) != (about["name"], about["options"]):
        raise DamagedFile(f"{path} is not the adapter that {RECORD} names", "Restore the right file.")
    return adapter


def bound(kind: str, base_id: str) -> dict[str, Any]:
    """Metadata of a file of a task: what it is, in which format, and the base that it belongs to."""
    return {"kind": kind, "format": FORMATS[kind], "base_id": base_id}


def save_coefficients(
    path: Path, vector: Tensor, places: Tensor | None, base_id: str, extra: dict[str, Any] | None = None
) -> None:
    """Write coefficients, with the places of chosen entries: in the oldest format that holds them."""
    tensors = {"coefficients": vector}
    own: dict[str, Any] = {"format": OF_LAYOUT}
    if places is not None:
        tensors["places"] = places
        own = {"format": OF_ENTRIES} if len(places) == len(vector) else {}
    write_tensors(path, tensors, bound("coefficients", base_id) | own | (extra or {}))


def save_head(path: Path, head: Head, base_id: str) -> None:
    """Write a head."""
    write_tensors(path, head._asdict(), bound("head", base_id))


def save_adapter(path: Path, adapter: Adapter, base_id: str) -> None:
    """Write what was learned in an adapter."""
    about = {"adapter": adapter.name, "options": adapter.options}
    write_tensors(path, adapter.tensors, bound("adapter", base_id) | about)


def read_adapter(path: Path) -> Adapter:
    """The inverse of `save_adapter`. Raises DamagedFile."""
    metadata = read_metadata(path) or {}
    name, options = metadata.get("adapter"), metadata.get("options")
    if name not in ADAPTERS or not isinstance(options, dict):
        raise DamagedFile(f"{path}: its recast metadata is damaged", AGAIN)
    return Adapter(name, options, read_tensors(path))
