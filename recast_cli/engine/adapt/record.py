"""What task.yaml says of how a task was learned, and whether that is what is asked for now."""

import datetime
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

from recast_cli.engine.adapt.fit import Learned
from recast_cli.engine.errors import RecastError, option
from recast_cli.engine.images.decode import Images
from recast_cli.engine.images.splits import Split
from recast_cli.engine.runtime import distributed
from recast_cli.engine.task.options import AdaptOptions
from recast_cli.engine.task.record import TaskRecord
from recast_cli.version import __version__


def describe_learned(
    learned: Learned,
    options: AdaptOptions,
    images: Mapping[str, Images],
    device: torch.device,
    test_top1: float,
    probe_top1: float,
) -> dict[str, Any]:
    """What task.yaml says of what was learned and how its training went; `probe_top1` is the linear probe's on test."""
    state, adapter, floats = learned.state, learned.adapter, learned.adapter_floats
    return {
        "coefficients": learned.coefficients,
        "places": 0 if learned.places is None else len(learned.places),
        "adapter": adapter and {"name": adapter.name, "options": adapter.options, "floats": floats},
        "head_parameters": learned.head.floats,
        "metrics": {
            "val_top1": state.val_top1,
            "test_top1": test_top1,
            "linear_probe_val_top1": state.probe.val_top1,
            "linear_probe_test_top1": probe_top1,
            "linear_probe_penalty": state.probe.penalty,
            "best_epoch": state.best_epoch,
        },
        "options": asdict(options),
        "batch_size": state.batch_size,
        "skipped_images": [path for part in images.values() for path in part.skipped],
        "history": [asdict(epoch) for epoch in state.history],
        "device": str(device),
        "precision": type_name(learned.precision),
        "processes": distributed.world(),
        "images_per_second": state.images_per_second,
    }


def describe_split(split: Split, options: AdaptOptions) -> dict[str, Any]:
    """What task.yaml says of the split: its kind, sizes, and the validation and test images by name."""
    return {
        "kind": split.kind,
        "seed": options.split_seed,
        **{part: len(getattr(split, part)) for part in ("train", "val", "test")},
        "val_images": [item.path for item in split.val],
        "test_images": [item.path for item in split.test],
    }


def recorded_path(data: Path, folder: Path) -> str:
    """`data` relative to the folder that holds `tasks/` where it lies inside, so that both can move; else absolute."""
    home, data = folder.resolve().parent.parent, data.resolve()
    return data.relative_to(home).as_posix() if data.is_relative_to(home) else str(data)


def check_same(record: TaskRecord, identity: dict[str, Any], folder: Path) -> None:
    """Raise RecastError unless a finished task was made from the same base and data with the same options."""
    options = identity["options"]
    # a default learning rate follows from `choose`, which is said first
    wanted = {"base_id": identity["base_id"], "data": identity["data"], "choose": options["choose"], **options}
    found = {"base_id": record["base_id"], "data": record.get("data"), **record["options"]}
    for key, value in wanted.items():
        if key in found and found[key] != value:  # an older record lacks what was no option then
            anew = f"{option('restart', True)} to replace it, or another {option('name')}"
            hint = f"Give the old options to see its result, {anew}."
            raise RecastError(f"{folder} is finished with {key} {plain(found[key])}, now {key} is {plain(value)}", hint)


def plain(value: Any) -> Any:
    """An option's value as people would say it."""
    return "none" if value is None else value


def type_name(dtype: torch.dtype) -> str:
    """`bfloat16`."""
    return str(dtype).removeprefix("torch.")


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "recast-cli": __version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
