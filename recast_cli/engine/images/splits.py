"""Train, validation and test split of an image folder: its own folders where it has them, else cut by a hash.

The hash is over the relative path and the split seed, so a split depends on neither order nor machine, and the
training seed never touches it.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from recast_cli.engine.errors import MissingFile, RecastError, option
from recast_cli.engine.images.folders import Item, list_classes, list_items

FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SHARE = 0.15


@dataclass(frozen=True)
class Split:
    """Items of the three parts, and where they came from.

    Attributes:
        classes: Class names in the order of their labels.
        kind: `folders` (train, val and test as found), `hash` (cut here), `pooled` (folders put together, then cut).
    """

    classes: tuple[str, ...]
    kind: str
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]


def split_folder(root: Path, seed: int = 0, pooled: bool = False) -> Split:
    """Split the images of `root`.

    `root` holds class folders, or train / val (valid, validation) / test folders of class folders. Without any
    split 70/15/15, stratified; a missing val or test is 15 % of train. `pooled` puts all folders together and cuts
    them 70/15/15, as the paper did.

    Raises:
        RecastError: No classes, one class only, a class without images, a class that train does not have, or too
            few images for a validation and a test image.
    """
    found = part_folders(root)
    kind = "pooled" if found and pooled else "folders" if found else "hash"
    folders = found or {"train": ""}  # a flat folder is all train
    if "train" not in folders:
        hint = f"Add one, or give {option('data')} elsewhere."
        raise MissingFile(f"{root} has {' and '.join(found)} but no train folder", hint)
    classes = list_classes(root / folders["train"])
    if len(classes) < 2:
        what = f"{root / folders['train']} has one class only: {classes[0]}"
        raise RecastError(what, "A task needs two class folders or more.")
    parts = {}
    for part, folder in folders.items():
        here = list_classes(root / folder)
        if strangers := sorted(set(here) - set(classes)):
            hint = "Add it to train."
            raise RecastError(f"{root / folder} has a class that train does not have: {strangers[0]}", hint)
        parts[part] = tuple(list_items(root, folder, here, classes))
    if pooled or len(parts) == 1:
        train, val, test = cut_twice([item for items in parts.values() for item in items], seed)
    else:
        train, val, test = (parts.get(part, ()) for part in FOLDERS)
        if "val" not in parts:
            train, val = cut(train, SHARE, seed, "val")
        if "test" not in parts:
            train, test = cut(train, SHARE, seed, "test")
    for part, items in {"train": train, "val": val, "test": test}.items():
        if not items:
            raise RecastError(f"{root} has too few images to cut a {part} split from", "Give 3 images a class or more.")
    return Split(tuple(classes), kind, train, val, test)


def part_folders(root: Path) -> dict[str, str]:
    """Which of train, val and test `root` has, and what their folders are called; one without folders is a class.

    Raises:
        RecastError: Two folders are the same part.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError:
        return {}  # `list_classes` says what is wrong
    found: dict[str, str] = {}
    for part, options in FOLDERS.items():
        for name in names:
            if name.casefold() in options and (len(names) == 1 or has_folders(root / name)):
                if part in found:
                    raise RecastError(f"{root} has both {found[part]} and {name}", "Put them together, or rename one.")
                found[part] = name
    return found


def measured_part(root: Path) -> str:
    """The folder inside `root` that is measured: its test, else its val, else its train part; empty for a flat one."""
    found = part_folders(root)
    return next((found[part] for part in ("test", "val", "train") if part in found), "")


def has_folders(folder: Path) -> bool:
    """Whether there are folders in a folder; where nobody may look, that is for others to find out."""
    try:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder))
    except OSError:
        return True


def check_read(split: Split, labels: Tensor, root: Path) -> None:
    """Raise RecastError where none of a class's training images is among those that could be read, by their labels."""
    for label in sorted({item.label for item in split.train} - set(labels.tolist())):
        hint = "Repair them, or take the class away."
        raise RecastError(f"Not one training image of the class {split.classes[label]} in {root} can be read", hint)


def cut_twice(items: Sequence[Item], seed: int) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[Item, ...]]:
    """Train, val and test: 70/15/15."""
    rest, test = cut(items, SHARE, seed, "test")
    train, val = cut(rest, SHARE / (1 - SHARE), seed, "val")
    return train, val, test


def cut(items: Sequence[Item], share: float, seed: int, part: str) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """What stays, and `share` of each class: those with the smallest hashes, both in the order of `items`.

    At least one image of a class is cut off where two or more are there, and at least one stays.
    """
    by_class: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        by_class[item.label].append(item)
    chosen: set[Item] = set()
    for members in by_class.values():
        count = min(max(1, round(share * len(members))), len(members) - 1)
        by_hash = sorted(members, key=lambda item: hashlib.sha256(f"{part}:{seed}:{item.path}".encode()).digest())
        chosen.update(by_hash[:count])
    return tuple(item for item in items if item not in chosen), tuple(item for item in items if item in chosen)
