"""Wrong folders of images: exit status 2, one line that says what was wrong, and nothing half-written."""

import os
import shutil

import pytest
from fixtures.cli_helpers import QUICK, recast, refused
from helpers import draw_images

pytest_plugins = ["fixtures.cli"]


def adapt_with(folder):
    return refused("adapt", "--task", "new", "--data", folder, *QUICK)


def test_image_folders_that_cannot_be_learned_from(ready):
    (ready / "empty").mkdir()
    assert "no class folders" in adapt_with("empty")
    assert "is a file" in adapt_with("base.safetensors")
    draw_images(ready / "single", classes=("only",))
    assert "one class only" in adapt_with("single")
    draw_images(ready / "gap", classes=("full", "other"))
    (ready / "gap" / "hollow").mkdir()
    assert "hollow has no images" in adapt_with("gap")
    draw_images(ready / "few", count=1)
    assert "too few images" in adapt_with("few")
    draw_images(ready / "parts" / "train", classes=("blue", "green"))
    draw_images(ready / "parts" / "test", classes=("blue", "pink"))
    assert "pink" in adapt_with("parts")
    draw_images(ready / "no-train" / "test", classes=("blue", "pink"))
    assert "no train folder" in adapt_with("no-train")


def test_a_name_that_is_not_utf8(ready):
    draw_images(ready / "latin", count=4)
    os.rename("latin/red/000.png", b"latin/red/caf\xe9.png")
    assert "not UTF-8" in adapt_with("latin")


def test_not_one_readable_image(ready):
    draw_images(ready / "bad", count=4)
    for path in (ready / "bad").rglob("*.png"):
        path.write_text("no image")
    assert "Not one of the" in adapt_with("bad")
    assert "Not one of the 12 images" in refused("eval", "--task", "colours", "--data", "bad")


@pytest.mark.parametrize("locked", ["data/colours", "data/colours/red"])
def test_a_folder_without_permission(locked, ready, monkeypatch):
    """Through the call that would fail, as permissions do not stop an administrator."""
    kept = os.scandir

    def scandir(path="."):
        if os.path.realpath(path) == str(ready / locked):
            raise PermissionError(13, "Permission denied", str(path))
        return kept(path)

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", scandir)
        results = [
            recast("adapt", "--task", "new", "--data", "data/colours", *QUICK),
            recast("eval", "--task", "colours", "--data", "data/colours"),
        ]
    for result in results:
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: No permission to read the folder {locked}")
    assert not (ready / "tasks" / "new").exists()


def test_test_images_that_are_gone(ready):
    shutil.rmtree("data/colours/red")
    assert "of the recorded test split is gone" in refused("eval", "--task", "colours")
    shutil.rmtree("data/colours")
    assert "are gone from" in refused("eval", "--task", "colours")


def test_a_class_map_belongs_to_the_source(ready):
    (ready / "map.yaml").write_text("blue: 0\n")
    assert "--class-map" in refused("eval", "--task", "colours", "--class-map", "map.yaml")
    assert "nothing.yaml" in refused("eval", "--data", "data/colours", "--class-map", "nothing.yaml")
    assert "blue" in refused("eval", "--data", "data/colours")
