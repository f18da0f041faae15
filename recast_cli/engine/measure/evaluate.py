"""Merge a task, or the source itself, into plain weights and measure it on images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from recast_cli.engine.base.base import Base
from recast_cli.engine.errors import DamagedFile, MissingFile, RecastError, option, suggest
from recast_cli.engine.images.decode import Images, decode, evaluation_transform, open_image
from recast_cli.engine.images.folders import Item, list_classes, list_items
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.images.splits import measured_part
from recast_cli.engine.measure.metrics import confused_pairs, per_class, top_k
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.device import choose_device, ready
from recast_cli.engine.runtime.inference import infer, take_features
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.task import Task

ELSEWHERE = f"Give images with {option('data', 'DIR')}."


@dataclass(frozen=True)
class Evaluation:
    """Accuracies as fractions from 0 to 1.

    Attributes:
        task: Name of the task; None for the source's own classifier.
        split: `test` as recorded, or `data` for a folder that was named.
        images: How many were measured.
        top1: Share of images whose class comes first.
        top5: Share whose class is among the first five; None for fewer than six classes.
        per_class: Top-1 by class; None for a class without images.
        confused: The most frequent mistakes.
        skipped: Images that could not be read.
    """

    task: str | None
    split: str
    images: int
    top1: float
    top5: float | None
    per_class: dict[str, float | None]
    confused: list[dict[str, Any]]
    skipped: list[str]


@dataclass(frozen=True)
class Guess:
    """The most probable class of one image."""

    image: str
    label: str
    probability: float


def evaluate(
    base: Base,
    task: Task,
    recorded: Path | None = None,
    data: Path | None = None,
    *,
    switcher: Switcher | None = None,
    device: str | None = None,
    on_bad_image: str = "skip",
    cache_size: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a task on its recorded test split, or on a folder.

    Args:
        base: The task's base.
        task: From `load_task(folder, base)`.
        recorded: Data folder of the recorded test split; needed without `data`.
        data: Every image of a flat folder of classes, else of its test part, else of its val or even its train part.
        switcher: Of `base`, for several tasks: its network is switched to the task, else one is built for it.
        device: cpu, cuda, …, where there is no switcher; default: CUDA where it is.
        on_bad_image: `skip` or `fail`.
        cache_size: Bytes that the cache of decoded images may take; 0: no cache; None: 10 GB.
        progress: Called with images done and images in all.

    Raises:
        RecastError: A recorded image or a folder is missing, or a class is unknown.
    """
    classes = task.classes
    if data is not None:
        root, items, split = data, labelled_items(data, {name: i for i, name in enumerate(classes)}), "data"
    else:
        if recorded is None or not recorded.is_dir():
            raise MissingFile(f"The images of task {task.name} are gone from {recorded}", ELSEWHERE)
        root, items, split = recorded, recorded_items(task), "test"
        for item in items:
            if not (recorded / item.path).exists():
                raise MissingFile(f"{recorded / item.path} of the recorded test split is gone", ELSEWHERE)
    where = switcher.device if switcher else choose_device(device)
    architecture = base.known_architecture()
    images = decode(
        root, items, architecture.preprocessing.at(task.image_size), on_bad_image, progress, cache_size=cache_size
    )
    logits = task_logits(base, task, images.pixels, where, progress, switcher)
    return score(task.name, split, logits, images, classes)


def evaluate_source(
    base: Base,
    data: Path,
    class_map: dict[str, int] | None = None,
    *,
    device: str | None = None,
    on_bad_image: str = "skip",
    cache_size: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure the source's own classifier on folders named by class index or wnid, or by `class_map`.

    Args:
        base: Its architecture must be known.
        data: As of `evaluate`, like `device`, `on_bad_image`, `cache_size` and `progress`.
        class_map: Name of a folder -> index of a class, from 0.

    Raises:
        RecastError: The source has no classifier, or a folder's class is unknown.
    """
    architecture = base.known_architecture()
    outputs = int(architecture.args.get("num_classes") or 0)
    if not outputs:
        hint = f"Measure a task with {option('task', 'NAME')}."
        raise RecastError(f"{base.path or base.source}: the source has no classifier", hint)
    labels = class_map or class_indices(outputs)
    for name, index in labels.items():
        if not 0 <= index < outputs:
            hint = "Correct the map."
            raise RecastError(f"Class {name} has index {index}, the classifier ends at {outputs - 1}", hint)
    otherwise = f"Or say with {option('class_map')} which class it is."
    items = labelled_items(data, labels, otherwise)
    images = decode(data, items, architecture.preprocessing, on_bad_image, progress, cache_size=cache_size)
    model = ready(merge(base), where := choose_device(device))
    logits = infer(model, images.pixels, architecture.preprocessing, where, 64, progress, "source", frozen=True)
    # a class may have several names; those of its folders are the ones that their owner knows
    folders: dict[int, list[str]] = {}
    for name in list_classes(data / measured_part(data)):
        folders.setdefault(labels[name], []).append(name)
    names = {index: name for name, index in labels.items()}
    names |= {index: ", ".join(own) for index, own in folders.items()}
    known = [names.get(index, f"index {index}") for index in range(outputs)]
    return score(None, "data", logits, images, known, seen=True)


def task_logits(
    base: Base,
    task: Task,
    pixels: Tensor,
    device: torch.device,
    progress: Progress | None = None,
    switcher: Switcher | None = None,
) -> Tensor:
    """Logits (N, classes) of the merged network, the switcher's where there is one, with the task's head."""
    if switcher is None:
        model = ready(merge(base, task.vector, task.image_size, task.adapter, task.places), device)
    else:
        model = switcher.switch(task.vector, task.image_size, task.adapter, task.places)
    preprocessing = base.known_architecture().preprocessing
    found = infer(take_features(model), pixels, preprocessing, device, 64, progress, task.name, frozen=True)
    return task.head(found)


def score(
    task: str | None, split: str, logits: Tensor, images: Images, classes: list[str], seen: bool = False
) -> Evaluation:
    """Accuracies from logits; `seen` leaves classes without images out of the per-class list."""
    predicted = logits.argmax(1)
    by_class = per_class(predicted, images.labels, classes)
    return Evaluation(
        task=task,
        split=split,
        images=len(images),
        top1=top_k(logits, images.labels),
        top5=top_k(logits, images.labels, 5) if len(classes) > 5 else None,
        per_class={name: value for name, value in by_class.items() if value is not None or not seen},
        confused=confused_pairs(predicted, images.labels, classes),
        skipped=images.skipped,
    )


def recorded_items(task: Task) -> list[Item]:
    """The test images that task.yaml names; the class is the folder an image lies in, below its part's folder."""
    index = {name: place for place, name in enumerate(task.classes)}
    items = []
    for path in task.record["split"]["test_images"]:
        parts = path.split("/")
        start = 0 if task.record["split"]["kind"] == "hash" else 1
        if len(parts) <= start + 1 or parts[start] not in index:
            raise DamagedFile(f"task.yaml of {task.name} names a test image of no class: {path}", ELSEWHERE)
        items.append(Item(path, index[parts[start]]))
    return items


def labelled_items(data: Path, labels: dict[str, int], otherwise: str = "") -> list[Item]:
    """Images of a flat folder of classes, else of its test, else its val, else its train part.

    Raises:
        RecastError: A class folder that `labels` does not know.
    """
    folder = measured_part(data)
    names = list_classes(data / folder)
    for name in names:
        if name not in labels:
            hint = f"{suggest(name, labels)} {otherwise}"
            raise RecastError(f"{data / folder / name} is a class that is not known here", hint)
    return [Item(item.path, labels[names[item.label]]) for item in list_items(data, folder, names, names)]


def class_indices(outputs: int) -> dict[str, int]:
    """Folder names that stand for a class by themselves: its index, and its wnid where there are 1000 classes."""
    labels = {str(index): index for index in range(outputs)}
    if outputs == 1000:
        labels |= {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return labels


def predict(
    base: Base,
    task: Task,
    images: list[Path],
    *,
    device: str | None = None,
    on_problem: Callable[[RecastError], None] | None = None,
    progress: Progress | None = None,
) -> list[Guess]:
    """The class of each image, in order, with its probability from 0 to 1.

    Args:
        base: As of `evaluate`, like `task`, `device` and `progress`.
        images: Image files.
        on_problem: Called with what is wrong with an image that cannot be read, which is then left out; default: raise.

    Raises:
        RecastError: An image cannot be read, and there is no `on_problem`.
    """
    architecture = base.known_architecture()
    transform = evaluation_transform(architecture.preprocessing.at(task.image_size))
    pixels, names = [], []
    for path in images:
        try:
            pixels.append(open_image(path, transform))
            names.append(str(path))
        except RecastError as error:
            if on_problem is None:
                raise
            on_problem(error)
    if not pixels:
        return []
    logits = task_logits(base, task, torch.stack(pixels), choose_device(device), progress)
    best = logits.softmax(1).max(1)
    return [
        Guess(name, task.classes[index], float(probability))
        for name, index, probability in zip(names, best.indices.tolist(), best.values, strict=True)
    ]


def measure(model: nn.Module, head: Head, images: Images, preprocessing: Preprocessing) -> float:
    """Top-1 of a merged network with a head on `images`."""
    found = infer(take_features(model), images.pixels, preprocessing, next(model.parameters()).device, frozen=True)
    return top_k(head(found), images.labels)
