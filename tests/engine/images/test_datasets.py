"""Known image sets, fetched from a server on this machine that has tiny archives of the true structure."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as sets
from fixtures.datasets import AIRCRAFT, FLOWER_LABELS, FLOWERS, jpeg
from PIL import Image
from torchvision.datasets import utils

from recast_cli.engine.images import datasets as known
from recast_cli.engine.images.datasets import fetch_known
from recast_cli.engine.images.splits import split_folder

pytest_plugins = ["fixtures.datasets"]


def tree(folder):
    """All files below `folder`, as sorted relative names."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_cifar10_becomes_png_files_of_the_very_same_pixels(cifar10):
    assert fetch_known("cifar10", Path("data/cifar10")) == Path("data/cifar10")
    train = [cifar10[f"data_batch_{number}"] for number in range(1, 6)]
    parts = {
        "train": (np.concatenate([pixels for pixels, _ in train]), [label for _, labels in train for label in labels]),
        "test": cifar10["test_batch"],
    }
    expected = {}
    for part, (pixels, labels) in parts.items():
        for place, label in enumerate(labels):
            expected[f"{part}/{['plane', 'car', 'bird'][label]}/{place:05d}.png"] = pixels[place]
    assert tree(Path("data")) == sorted(f"cifar10/{name}" for name in expected)
    assert len(expected) == 13
    for name, pixels in expected.items():
        with Image.open(Path("data/cifar10") / name) as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), pixels)


def test_cifar100_has_its_fine_classes(cifar100):
    fetch_known("cifar100", Path("data/cifar100"))
    assert tree(Path("data/cifar100")) == [
        "test/apple/00000.png",
        "test/aquarium_fish/00001.png",
        "train/apple/00001.png",
        "train/apple/00003.png",
        "train/aquarium_fish/00000.png",
        "train/aquarium_fish/00002.png",
    ]


def test_flowers_keep_their_files_splits_and_names(flowers):
    fetch_known("flowers", Path("data/flowers"))
    root = Path("data/flowers")
    names = {1: "pink primrose", 2: "hard-leaved pocket orchid", 60: "pink-yellow dahlia?"}
    expected = {
        f"{part}/{names[FLOWER_LABELS[number - 1]]}/image_{number:05d}.jpg": flowers[number]
        for part, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
        for number in FLOWERS[key]
    }
    assert {name: (root / name).read_bytes() for name in tree(root)} == expected
    split = split_folder(root)
    assert (split.kind, len(split.train), len(split.val), len(split.test)) == ("folders", 3, 2, 2)


def test_flowers_without_names_in_torchvision_get_numbers(flowers, monkeypatch):
    monkeypatch.delattr(sets.Flowers102, "classes")
    fetch_known("flowers", Path("data/flowers"))
    assert sorted(path.name for path in Path("data/flowers/train").iterdir()) == ["00", "01", "59"]


def test_aircraft_keep_their_files_and_slashes_become_dashes(aircraft):
    fetch_known("aircraft", Path("data/aircraft"))
    root, names = Path("data/aircraft"), ["707-320", "F-16A-B", "F-A-18"]
    expected = {
        f"{part}/{names[label]}/{image}.jpg": jpeg(int(image))
        for part, found in AIRCRAFT.items()
        for image, label in found
    }
    assert {name: (root / name).read_bytes() for name in tree(root)} == expected
    assert tree(Path("data")) == sorted(f"aircraft/{name}" for name in expected)
    assert split_folder(root).classes == tuple(names)


def test_a_folder_with_something_in_it_is_left_as_it_is(server):
    Path("data/cifar10/mine").mkdir(parents=True)
    fetch_known("cifar10", Path("data/cifar10"))
    fetch_known("cifar10", Path("data/cifar10"))
    assert [path.name for path in Path("data/cifar10").iterdir()] == ["mine"]


@pytest.mark.parametrize("linked", [False, True])
def test_an_empty_folder_or_a_link_to_one_is_filled(cifar100, linked):
    Path("data").mkdir()
    if linked:
        Path("elsewhere").mkdir()
        Path("data/cifar100").symlink_to(Path("elsewhere").resolve())
    else:
        Path("data/cifar100").mkdir()
    fetch_known("cifar100", Path("data/cifar100"))
    assert len(tree(Path("data/cifar100/"))) == 6
    assert Path("data/cifar100").is_symlink() == linked
    assert not list(Path().glob("**/*.tmp"))


def test_a_run_that_was_slower_than_another_keeps_the_images_of_the_other(cifar100):
    def other(done, total, text):
        Path("data/cifar100/other").mkdir(parents=True, exist_ok=True)

    fetch_known("cifar100", Path("data/cifar100"), other)
    assert [path.name for path in Path("data").rglob("*")] == ["cifar100", "other"]


def test_progress_counts_and_nothing_is_printed(cifar10, capfd, monkeypatch):
    retrieve = utils._urlretrieve

    def talk(url, *arguments):  # as older versions of torchvision do
        print(f"Downloading {url}")
        retrieve(url, *arguments)

    monkeypatch.setattr(utils, "_urlretrieve", talk)
    seen = []
    fetch_known("cifar10", Path("data/cifar10"), lambda *report: seen.append(report))
    assert seen[0] == (0, 0, "downloading cifar10 (MB)")
    assert seen[1:] == [(done, 13, "writing cifar10") for done in range(1, 14)]
    assert capfd.readouterr() == ("", "")


def test_progress_is_in_megabytes(tmp_path):
    seen = []
    with known.reported("cifar10", lambda *report: seen.append(report)), utils.tqdm(total=3_500_000) as bar:
        for _ in range(7):
            bar.update(500_000)
    assert [report[:2] for report in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_torchvision_is_left_as_it_was(cifar10):
    before, wait = utils.tqdm, socket.getdefaulttimeout()
    fetch_known("cifar10", Path("data/cifar10"))
    assert utils.tqdm is before
    assert socket.getdefaulttimeout() == wait
