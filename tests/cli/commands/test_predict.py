"""`recast predict`."""

import json

from fixtures.cli_helpers import recast, recast_json, refused

pytest_plugins = ["fixtures.cli"]

IMAGES = ("data/colours/red/000.png", "data/colours/blue/001.png")


def test_json_has_class_and_probability_of_every_image_in_order(ready):
    value = recast_json("predict", "--task", "colours", *IMAGES)
    assert value.keys() == {"predictions"}
    assert [each["image"] for each in value["predictions"]] == list(IMAGES)
    for each in value["predictions"]:
        assert each.keys() == {"image", "class", "probability"}
        assert each["class"] in ("blue", "green", "red")
        assert 1 / 3 <= each["probability"] <= 1


def test_people_see_a_line_an_image(ready):
    result = recast("predict", "--task", "colours", *IMAGES)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["image", *IMAGES]
    assert result.stderr == ""


def test_images_that_cannot_be_read_are_named_after_the_others_and_exit_with_2(ready):
    (ready / "bad.png").write_text("no image")
    result = recast("predict", "--task", "colours", "--json", "bad.png", IMAGES[0], "missing.png")
    assert result.exit_code == 2
    assert [each["image"] for each in json.loads(result.stdout)["predictions"]] == [IMAGES[0]]
    first, second = result.stderr.splitlines()
    assert first.startswith("error: bad.png is not a readable image")
    assert second.startswith("error: missing.png does not exist")


def test_a_folder_is_no_image(ready):
    assert refused("predict", "--task", "colours", "data") == "error: data is a folder. Give image files."


def test_without_any_readable_image_there_is_no_result(ready):
    assert "missing.png does not exist" in refused("predict", "--task", "colours", "missing.png", "--json")


def test_a_task_of_the_working_folder_is_named_where_another_is_asked_for(ready):
    assert "Tasks here: colours, shades." in refused("predict", "--task", "color", IMAGES[0])
