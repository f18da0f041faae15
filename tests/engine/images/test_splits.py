"""Splits against a second implementation, written from the rule alone.

The rule: an image is ordered by sha256("<part>:<seed>:<relative path>") within its class, and the first ones leave:
15 % of a class for test, then 15/85 of what is left for val, rounded, at least one and never all.
"""

import hashlib
import random

import pytest
from helpers import draw_images
from hypothesis import given, settings
from hypothesis import strategies as st

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.folders import Item
from recast_cli.engine.images.splits import cut_twice, split_folder


def leavers(paths, share, seed, part):
    """The paths of one class that leave for `part`."""
    count = round(share * len(paths))
    count = 1 if count == 0 else count
    count = len(paths) - 1 if count >= len(paths) else count
    digests = {hashlib.sha256(f"{part}:{seed}:{path}".encode()).digest(): path for path in paths}
    return {digests[digest] for digest in sorted(digests)[:count]}


def expected_split(classes, seed):
    """Paths of train, val and test, as sets; `classes` maps a label to its paths."""
    train, val, test = set(), set(), set()
    for paths in classes.values():
        mine = leavers(paths, 0.15, seed, "test")
        rest = [path for path in paths if path not in mine]
        chosen = leavers(rest, 0.15 / 0.85, seed, "val")
        test |= mine
        val |= chosen
        train |= set(rest) - chosen
    return train, val, test


def items_of(classes):
    return [Item(path, label) for label, paths in classes.items() for path in paths]


counts = st.lists(st.integers(1, 40), min_size=2, max_size=5)


def named(counts):
    return {label: [f"class{label}/{i:03}.png" for i in range(count)] for label, count in enumerate(counts)}


@given(counts, st.integers(0, 1000))
def test_the_split_is_that_of_the_rule(counts, seed):
    classes = named(counts)
    found = tuple({item.path for item in part} for part in cut_twice(items_of(classes), seed))
    assert found == expected_split(classes, seed)


@given(counts, st.integers(0, 1000))
def test_parts_are_disjoint_complete_and_stratified(counts, seed):
    items = items_of(named(counts))
    parts = cut_twice(items, seed)
    assert sorted(item.path for part in parts for item in part) == sorted(item.path for item in items)
    for label, count in enumerate(counts):
        train, val, test = (sum(item.label == label for item in part) for part in parts)
        assert train + val + test == count
        if count >= 3:
            assert min(train, val, test) >= 1
            assert abs(test - 0.15 * count) <= 1
            assert abs(val - 0.15 * count) <= 1


@given(counts, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_order_does_not_matter(counts, seed, shuffler):
    items = items_of(named(counts))
    shuffled = random.Random(shuffler.random()).sample(items, len(items))
    for part, other in zip(cut_twice(items, seed), cut_twice(shuffled, seed), strict=True):
        assert set(part) == set(other)


@given(counts, st.integers(1, 20))
def test_images_of_another_class_move_nothing(counts, extra):
    classes = named(counts)
    more = items_of(classes) + [Item(f"new/{i}.png", len(counts)) for i in range(extra)]
    before, after = cut_twice(items_of(classes), 0), cut_twice(more, 0)
    for part, other in zip(before, after, strict=True):
        assert list(part) == [item for item in other if item.label < len(counts)]


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_split_seed_decides(seed):
    items = items_of(named([30, 30]))
    assert cut_twice(items, seed) == cut_twice(items, seed)
    assert cut_twice(items, seed)[2] != cut_twice(items, seed + 1)[2]


def paths(part):
    return {item.path for item in part}


def test_a_flat_folder_is_cut_by_the_rule(data):
    split = split_folder(data, 7)
    classes = {name: [f"{name}/{i:03}.png" for i in range(12)] for name in ("blue", "green", "red")}
    assert split.classes == ("blue", "green", "red")
    assert split.kind == "hash"
    assert (paths(split.train), paths(split.val), paths(split.test)) == expected_split(classes, 7)
    for part in (split.train, split.val, split.test):
        assert all(split.classes[item.label] == item.path.split("/")[0] for item in part)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_of_their_own_stay_as_they_are(val, tmp_path):
    for part, count in (("train", 6), (val, 2), ("test", 3)):
        draw_images(tmp_path / "d" / part, ("a", "b"), count, 8)
    split = split_folder(tmp_path / "d")
    assert split.kind == "folders"
    assert paths(split.train) == {f"train/{name}/{i:03}.png" for name in "ab" for i in range(6)}
    assert paths(split.val) == {f"{val}/{name}/{i:03}.png" for name in "ab" for i in range(2)}
    assert paths(split.test) == {f"test/{name}/{i:03}.png" for name in "ab" for i in range(3)}


@pytest.mark.parametrize(("there", "missing"), [("val", "test"), ("test", "val")])
def test_a_missing_part_is_cut_from_train(there, missing, tmp_path):
    draw_images(tmp_path / "d" / "train", ("a", "b"), 20, 8)
    draw_images(tmp_path / "d" / there, ("a", "b"), 2, 8)
    split = split_folder(tmp_path / "d", 3)
    assert paths(getattr(split, there)) == {f"{there}/{name}/{i:03}.png" for name in "ab" for i in range(2)}
    expected = set()
    for name in "ab":
        expected |= leavers([f"train/{name}/{i:03}.png" for i in range(20)], 0.15, 3, missing)
    assert paths(getattr(split, missing)) == expected
    assert not paths(split.train) & expected
    assert len(split.train) == 40 - len(expected)


def test_train_alone_is_cut_twice(tmp_path):
    draw_images(tmp_path / "d" / "train", ("a", "b"), 20, 8)
    split = split_folder(tmp_path / "d", 3)
    classes = {name: [f"train/{name}/{i:03}.png" for i in range(20)] for name in "ab"}
    assert (paths(split.train), paths(split.val), paths(split.test)) == expected_split(classes, 3)


def test_pooled_puts_all_parts_together(tmp_path):
    counts = {"train": 8, "val": 6, "test": 6}
    for part, count in counts.items():
        draw_images(tmp_path / "d" / part, ("a", "b"), count, 8)
    split = split_folder(tmp_path / "d", 1, pooled=True)
    classes = {
        name: [f"{part}/{name}/{i:03}.png" for part, count in counts.items() for i in range(count)] for name in "ab"
    }
    assert split.kind == "pooled"
    assert (paths(split.train), paths(split.val), paths(split.test)) == expected_split(classes, 1)


def test_images_below_folders_of_a_class_and_hidden_ones(tmp_path):
    draw_images(tmp_path / "d", ("a", "b"), 5, 8)
    draw_images(tmp_path / "d" / "a", ("deep",), 3, 8)
    (tmp_path / "d" / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "d" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "d" / ".git").mkdir()
    split = split_folder(tmp_path / "d")
    everything = paths(split.train) | paths(split.val) | paths(split.test)
    assert everything == {f"{n}/{i:03}.png" for n in "ab" for i in range(5)} | {f"a/deep/{i:03}.png" for i in range(3)}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "has no class folders"),
        ({"a": 5}, "one class only: a"),
        ({"a": 5, "b": 0}, "b has no images"),
        ({"a": 1, "b": 1}, "too few images"),
        ({"test/a": 3, "val/a": 3}, "no train folder"),
        ({"train/a": 5, "train/b": 5, "test/a": 2, "test/c": 2}, "train does not have: c"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(layout, message, tmp_path):
    (tmp_path / "d").mkdir()
    for name, count in layout.items():
        draw_images(tmp_path / "d" / name, ("",), count, 8)
    with pytest.raises(RecastError, match=message):
        split_folder(tmp_path / "d")


def test_a_missing_folder_and_a_file(tmp_path):
    with pytest.raises(RecastError, match="does not exist"):
        split_folder(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecastError, match="is a file"):
        split_folder(tmp_path / "file")


@pytest.mark.parametrize(("train", "val"), [("Train", "VALID"), ("train", "Val")])
def test_parts_may_be_written_large(train, val, tmp_path):
    for part in (train, val, "TEST"):
        draw_images(tmp_path / "d" / part, ("a", "b"), 2, 8)
    split = split_folder(tmp_path / "d")
    assert (split.kind, split.classes) == ("folders", ("a", "b"))
    assert paths(split.val) == {f"{val}/{name}/{i:03}.png" for name in "ab" for i in range(2)}


def test_two_folders_of_one_part_are_refused(tmp_path):
    for part in ("train", "val", "validation"):
        draw_images(tmp_path / "d" / part, ("a", "b"), 2, 8)
    with pytest.raises(RecastError, match="has both val and validation"):
        split_folder(tmp_path / "d")


def test_a_class_may_be_called_like_a_part(tmp_path):
    draw_images(tmp_path / "d", ("bus", "test", "train"), 5, 8)
    assert split_folder(tmp_path / "d").classes == ("bus", "test", "train")
