"""timm's own formats: a state dict in one file, and a folder with config.json that `local-dir:` opens."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from recast_cli.engine.architecture.build import skeleton
from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.architecture.timm_config import SOURCE_FIELDS, quiet
from recast_cli.engine.errors import RecastError, one_line
from recast_cli.engine.export.classifier import with_classifier
from recast_cli.engine.export.merged import OTHERWISE, Merged
from recast_cli.engine.export.restore import PLAIN, write_source
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.storage.atomic import write_text
from recast_cli.engine.storage.tensors import specs
from recast_cli.engine.storage.writer import writing

WEIGHTS, CONFIG = "model.safetensors", "config.json"
NOT_OURS = (*SOURCE_FIELDS, "custom_load", "label_offset", "test_input_size", "test_crop_pct", "min_input_size")
"""Fields of timm's pretrained config that say how another file of weights is read, or measured at other sizes."""


def write_plain(merged: Merged, path: Path) -> tuple[float, bool | None]:
    """Write timm's state dict and open it as `timm.create_model(NAME, checkpoint_path=...)` does.

    Returns:
        The largest difference of a logit; and without a task, whether the source's tensors came back bit by bit.

    Raises:
        RecastError: The head is no classifier of timm's, or what was written is not the merged network.
    """
    identical = write_weights(merged, path)
    name, args = call(merged)
    return opened(merged, name, checkpoint_path=str(path), **args), identical


def write_folder(merged: Merged, path: Path) -> tuple[float, bool | None]:
    """Write config.json and model.safetensors into a new folder and open it as `local-dir:`; else as `write_plain`."""
    path.mkdir(exist_ok=True)
    identical = write_weights(merged, path / WEIGHTS)
    write_text(path / CONFIG, json.dumps(config(merged), indent=2, ensure_ascii=False) + "\n")
    return opened(merged, f"local-dir:{path}", pretrained=True), identical


def write_weights(merged: Merged, path: Path) -> bool | None:
    """Write all tensors; without a task as the source has them, types included."""
    model = with_classifier(merged)
    if merged.task is None:
        return write_source(merged.base, path)
    state = model.state_dict()
    with writing(path, specs(state), PLAIN, key=None) as writer:
        writer.write_all(state.items())
        writer.finish(PLAIN)
    return None


@torch.no_grad()
def opened(merged: Merged, name: str, **args: Any) -> float:
    """Open with timm what was written: the largest difference of a logit to the merged network."""
    try:
        with quiet():
            model: nn.Module = timm.create_model(name, **args).eval()
        logits = model(merged.images)
    except (RuntimeError, ValueError, AssertionError, KeyError, TypeError) as error:
        what = f"timm does not open what was written of {merged.title}: {one_line(error)}"
        raise RecastError(what, OTHERWISE) from None
    return merged.difference(logits, f"What timm opens of {merged.title}")


def call(merged: Merged) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the `timm.create_model` that makes this network, without its weights."""
    architecture = merged.base.known_architecture()
    name = architecture.name.split(".")[0]
    args = {key: value for key, value in architecture.args.items() if value is not None}
    args["num_classes"] = len(merged.task.classes) if merged.task else args.get("num_classes", 0)
    size = merged.preprocessing.input_size[-1]
    default = timm.models.get_pretrained_cfg(name)
    own = args.get("img_size") or (default.input_size[-1] if default else architecture.image_size)
    if own not in (size, [size, size], (size, size)) and takes_size(name, args, size):
        args["img_size"] = size
    return name, args


def takes_size(name: str, args: dict[str, Any], size: int) -> bool:
    """Whether timm makes this network for a size; any other takes images of any size, or of one alone."""
    try:
        skeleton(name, **{**args, "img_size": size})
    except TypeError:
        return False
    return True


def config(merged: Merged) -> dict[str, Any]:
    """The content of config.json, as timm reads it, and writes it for a hub."""
    name, args = call(merged)
    architecture, classes = merged.base.known_architecture(), args.pop("num_classes")
    value: dict[str, Any] = {
        "architecture": name,
        "num_classes": classes,
        "num_features": getattr(merged.model, "num_features", None),
    }
    if merged.task:
        value["label_names"] = merged.task.classes
    return value | {"model_args": args, "pretrained_cfg": pretrained(architecture, merged.preprocessing, classes)}


def pretrained(architecture: Architecture, preprocessing: Preprocessing, classes: int) -> dict[str, Any]:
    """timm's pretrained config of these weights: preparation of images as they were learned."""
    known = {field.name for field in dataclasses.fields(PretrainedCfg)} - {"architecture", *NOT_OURS}
    kept = {key: value for key, value in architecture.config.items() if key in known}
    if list(preprocessing.input_size) != list(kept.get("input_size", ())):
        kept.pop("pool_size", None)  # of another size
    return kept | vars(preprocessing) | {"num_classes": classes}


def line(merged: Merged, path: Path, format: str) -> str:
    """The Python that opens what was written at `path`."""
    if format == "timm":
        return f"timm.create_model({f'local-dir:{path}'!r}, pretrained=True)"
    name, args = call(merged)
    words = [repr(name), *(f"{key}={value!r}" for key, value in args.items()), f"checkpoint_path={str(path)!r}"]
    return f"timm.create_model({', '.join(words)})"
