"""`recast eval`."""

import json

import pytest
from fixtures.cli_helpers import recast, recast_json, refused
from helpers import draw_images

from recast_cli.engine.model.attach import merge

pytest_plugins = ["fixtures.cli"]

KEYS = {"base_id", "tasks", "mean_top1", "unfinished", "passed"}
TASK_KEYS = {"task", "split", "images", "top1", "top5", "per_class", "confused", "skipped_images"}


def check(value, names, split="test"):
    assert value.keys() == KEYS
    assert [each["task"] for each in value["tasks"]] == names
    for each in value["tasks"]:
        assert each.keys() == TASK_KEYS
        assert each["split"] == split
        assert 0 <= each["top1"] <= 1
        assert each["top5"] is None
        assert all(0 <= share <= 1 for share in each["per_class"].values() if share is not None)
        assert all(pair.keys() == {"true", "predicted", "images"} for pair in each["confused"])
    assert value["mean_top1"] == pytest.approx(sum(each["top1"] for each in value["tasks"]) / len(names))


def test_one_task_on_its_recorded_test_split(ready):
    value = recast_json("eval", "--task", "colours")
    check(value, ["colours"])
    assert value["passed"] is None
    assert value["tasks"][0]["images"] == 6
    assert value["tasks"][0]["per_class"].keys() == {"blue", "green", "red"}
    adapted = recast_json("adapt", "--task", "colours", "--epochs", 1)
    assert value["tasks"][0]["top1"] == adapted["test_top1"]


def test_several_tasks_in_the_order_given_and_all_of_them_sorted(ready):
    check(recast_json("eval", "--task", "shades", "--task", "colours", "--task", "shades"), ["shades", "colours"])
    check(recast_json("eval", "--all"), ["colours", "shades"])


def test_several_tasks_share_one_network(ready, monkeypatch):
    alone = [recast_json("eval", "--task", name)["tasks"][0] for name in ("colours", "shades")]
    sizes = []

    def counted(base, vector=None, image_size=None):
        sizes.append(image_size)
        return merge(base, vector, image_size)

    monkeypatch.setattr("recast_cli.engine.model.switcher.merge", counted)
    monkeypatch.setattr("recast_cli.engine.measure.evaluate.merge", counted)
    assert recast_json("eval", "--all")["tasks"] == alone
    assert sizes == [32]


def test_people_see_a_line_a_task_and_the_mean(ready):
    result = recast("eval", "--all")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["task", "colours", "shades", "mean"]
    assert result.stderr == ""


def test_people_see_what_is_weak(ready):
    swap = ready / "swapped"
    draw_images(swap, classes=("green", "blue"), count=4)  # the images of one class under the name of the other
    result = recast("eval", "--task", "colours", "--data", swap)
    assert result.exit_code == 0
    assert "weakest classes: " in result.stdout
    assert "most confused: " in result.stdout


def test_a_flat_folder_is_measured_whole(ready):
    draw_images(ready / "new", count=5, seed=7)
    value = recast_json("eval", "--task", "colours", "--data", "new")
    check(value, ["colours"], "data")
    assert value["tasks"][0]["images"] == 15


@pytest.mark.parametrize(("parts", "images"), [(("train", "val", "test"), 6), (("train", "val"), 9)])
def test_a_folder_with_parts_is_measured_on_test_else_on_val(parts, images, ready):
    for part in parts:
        draw_images(ready / "new" / part, count={"train": 4, "val": 3, "test": 2}[part])
    assert recast_json("eval", "--task", "colours", "--data", "new")["tasks"][0]["images"] == images


def test_a_class_without_images_is_null_and_an_unknown_one_an_error(ready):
    draw_images(ready / "some", classes=("blue", "green"), count=2)
    assert recast_json("eval", "--task", "colours", "--data", "some")["tasks"][0]["per_class"]["red"] is None
    draw_images(ready / "other", classes=("blue", "gren"), count=2)
    assert "gren" in refused("eval", "--task", "colours", "--data", "other")


def test_a_threshold_that_is_met(ready):
    value = recast_json("eval", "--all", "--fail-under", 0)
    assert value["passed"] is True


def test_a_threshold_that_one_task_misses_is_exit_status_1(ready):
    swap = ready / "swapped"
    draw_images(swap, classes=("green", "blue"), count=4)
    options = ("eval", "--task", "colours", "--data", swap, "--fail-under", 1)
    value = recast_json(*options, code=1)
    check(value, ["colours"], "data")
    assert value["passed"] is False
    assert recast(*options).stderr == "error: Below --fail-under 1.0: colours.\n"


def test_the_sources_own_classifier(ready):
    draw_images(ready / "numbered", classes=("0", "3"), count=4)
    value = recast_json("eval", "--base", "base.safetensors", "--data", "numbered")
    (each,) = value["tasks"]
    assert each.keys() == TASK_KEYS
    assert (each["task"], each["split"], each["images"]) == (None, "data", 8)
    assert each["per_class"].keys() == {"0", "3"}
    assert "\nsource " in recast("eval", "--base", "base.safetensors", "--data", "numbered").stdout


@pytest.mark.parametrize(
    "content",
    ["cat: 0\ndog: 3\n", '{"cat": 0, "dog": 3}', "cat\na\nb\ndog\n", "[cat, a, b, dog]", "- cat\n- a\n- b\n- dog"],
)
def test_with_a_map_of_classes(content, ready):
    draw_images(ready / "named", classes=("cat", "dog"), count=4)
    (ready / "map.yaml").write_text(content)
    value = recast_json("eval", "--data", "named", "--class-map", "map.yaml")
    assert value["tasks"][0]["per_class"].keys() == {"cat", "dog"}
    assert json.dumps(value)


@pytest.mark.parametrize("content", ["cat: zero\n", "cat: 0\ndog: 99\n", "\tcat: 0", "cat: 0\ndog: -1", "3"])
def test_a_wrong_map_is_refused(content, ready):
    draw_images(ready / "named", classes=("cat", "dog"), count=1)
    (ready / "map.yaml").write_text(content)
    refused("eval", "--data", "named", "--class-map", "map.yaml")


def test_a_single_bad_image_is_left_out_and_named(ready):
    draw_images(ready / "new", count=2)
    (ready / "new" / "red" / "001.png").write_text("no image")
    result = recast("eval", "--task", "colours", "--data", "new")
    assert result.exit_code == 0
    assert result.stderr == "warning: left out 1 image that could not be read: red/001.png\n"
    assert recast_json("eval", "--task", "colours", "--data", "new")["tasks"][0]["skipped_images"] == 1
    assert "red/001.png" in refused("eval", "--task", "colours", "--data", "new", "--on-bad-image", "fail")


def test_a_task_in_the_middle_of_its_training_has_not_passed(ready):
    (ready / "tasks" / "half").mkdir()
    try:
        result = recast("eval", "--all", "--fail-under", 0, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["unfinished"] == ["half"]
        assert "error: Not measured with --fail-under 0.0: half." in result.stderr
        assert recast_json("eval", "--all")["passed"] is None
    finally:
        (ready / "tasks" / "half").rmdir()
