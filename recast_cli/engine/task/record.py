"""What task.yaml says of a task: how it was learned, on what, and what came out."""

from typing import Any, TypedDict, get_origin, get_type_hints


class Needed(TypedDict):
    """What the record of every finished task has; the rest is for people.

    Attributes:
        format: Of the file.
        name: Of the task.
        base_id: The base it belongs to.
        data: The image folder, relative to the folder that holds `tasks/` where it lies inside.
        image_size: Height and width in pixels.
        classes: Names in the order of the head's rows.
        split: `kind`, `seed`, how many images each part has, and `val_images` and `test_images` by name.
        options: `AdaptOptions`.
        metrics: `val_top1`, `test_top1`, the same of the linear probe, shares from 0 to 1; `best_epoch`.
    """

    format: int
    name: str
    base_id: str
    data: str
    image_size: int
    classes: list[str]
    split: dict[str, Any]
    options: dict[str, Any]
    metrics: dict[str, Any]


class TaskRecord(Needed, total=False):
    """The content of task.yaml; older ones lack what was not noted then."""

    base_source: str
    architecture: str
    coefficients: int
    places: int
    adapter: dict[str, Any] | None
    head_parameters: int
    batch_size: int | None
    skipped_images: list[str]
    history: list[dict[str, Any]]
    device: str
    precision: str
    processes: int
    images_per_second: float | None
    seconds: float
    timings: dict[str, float]
    started: str
    finished: str
    versions: dict[str, str]


FIELDS = {name: get_origin(kind) or kind for name, kind in get_type_hints(Needed).items()}
"""Name of what a record must have -> its type."""
