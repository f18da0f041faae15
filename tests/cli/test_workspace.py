"""recast.yaml: what it sets, and what is wrong with it."""

import os

import pytest
import yaml
from fixtures.cli_helpers import QUICK, recast, recast_json, refused

from recast_cli.workspace import find_workspace

pytest_plugins = ["fixtures.cli"]


def write(text, name="recast.yaml"):
    with open(name, "w") as file:
        file.write(text)


def options(folder, task="colours"):
    return yaml.safe_load((folder / "tasks" / task / "task.yaml").read_text())["options"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recast.yaml", "recast.yml"])
def test_base_images_and_tasks_are_found_from_a_folder_below(name, fresh, monkeypatch):
    (fresh / "base.safetensors").rename(fresh / "other.safetensors")
    (fresh / "data" / "colours").rename(fresh / "images")
    write("base: other.safetensors\ntasks:\n  colours: {data: images, epochs: 1}\n", name)
    (fresh / "notes" / "deep").mkdir(parents=True)
    monkeypatch.chdir(fresh / "notes" / "deep")
    assert recast("adapt", "--task", "colours").exit_code == 0
    assert (fresh / "tasks" / "colours" / "task.yaml").is_file()
    assert recast_json("eval", "--all")["tasks"][0]["images"] == 6
    assert recast_json("inspect", "colours")["base"] == str(fresh / "other.safetensors")
    assert os.listdir() == []


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(fresh):
    write("tasks:\n  colours:\n    epochs: 1\n    batch-size: 8\n    head_lr: 0.5\n")
    assert recast("adapt", "--task", "colours", "--batch-size", 16).exit_code == 0
    found = options(fresh)
    assert (found["epochs"], found["batch_size"], found["head_lr"], found["lr"]) == (1, 16, 0.5, 0.05)


def test_flags_for_base_and_data_win_too(fresh):
    write("base: missing.safetensors\ntasks:\n  colours: {data: missing}\n")
    flags = ("--base", "base.safetensors", "--data", "data/shades")
    assert recast("adapt", "--task", "colours", *flags, *QUICK).exit_code == 0


def test_numbers_as_people_write_them(fresh):
    write("tasks:\n  colours: {epochs: 1, lr: 2e-3, head_lr: 1}\n")
    assert recast("adapt", "--task", "colours").exit_code == 0
    assert (options(fresh)["lr"], options(fresh)["head_lr"]) == (0.002, 1)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "tasks:\n", "tasks:\n  colours:\n", "base:\ntasks: {colours: {data: }}\n"])
def test_what_is_left_open_has_its_default(text, fresh):
    write(text)
    assert recast("adapt", "--task", "colours", *QUICK).exit_code == 0


def test_home_is_understood(fresh, monkeypatch):
    monkeypatch.setenv("HOME", str(fresh))
    (fresh / "below").mkdir()
    monkeypatch.chdir(fresh / "below")
    write("base: ~/base.safetensors\ntasks:\n  new: {data: ~/data/colours}\n")
    assert recast("adapt", "--task", "new", *QUICK).exit_code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bas: base.safetensors", "unknown key 'bas'. Did you mean 'base'?"),
        ("tasks: {colours: {epoch: 3}}", "unknown key 'tasks.colours.epoch'. Did you mean 'epochs'?"),
        ("tasks: {colours: {zzz: 3}}", "Known: "),
        ("tasks:\n\tcolours: {}", "line 2: "),
        ("tasks:\n\tcolours: {}", "Indent with spaces, not tabs."),
        ("tasks: [colours]", "tasks is a list"),
        ("tasks: {colours: [1]}", "tasks.colours is a list"),
        ("tasks: {colours: {epochs: many}}", "tasks.colours.epochs is text ('many'), and a whole number is wanted"),
        ("tasks: {colours: {epochs: 1.5}}", "and a whole number is wanted"),
        ("tasks: {colours: {epochs: true}}", "true or false"),
        ("tasks: {colours: {lr: fast}}", "and a number is wanted"),
        ("tasks: {colours: {epochs: -1}}", "epochs -1"),
        ("tasks: {colours: {lr: .nan}}", "nan"),
        ("tasks: {colours: {split: sideways}}", "sideways"),
        ("tasks: {../colours: {}}", "'../colours' cannot be the name of a task"),
        ("base: a\nbase: b", "line 2: the key 'base' is there twice"),
        (
            "tasks: {colours: {image-size: 32, image_size: 40}}",
            "has a key twice, once with - and once with _",
        ),
        ("tasks: {colours: {lr: -1}}", "recast.yaml: tasks.colours: lr -1 is not a positive number"),
        ("base: 3", "base is a whole number (3), and text is wanted"),
        ("base: missing.safetensors", "missing.safetensors does not exist"),
        ("base: [", "recast.yaml line 1"),
        ("- base", "holds a list"),
        ("base", "holds text"),
    ],
)
def test_what_is_wrong_is_said(text, says, ready):
    write(text)
    line = refused("adapt", "--task", "colours", *([] if "epochs" in text else QUICK))
    assert says in line


def test_a_file_that_is_no_text(ready):
    (ready / "recast.yaml").write_bytes(b"\xff\xfe\x00base")
    assert "recast.yaml" in refused("eval", "--all")


def test_every_command_reads_it(ready):
    write("bas: base.safetensors")
    for arguments in (("eval", "--all"), ("predict", "--task", "colours", "x.png"), ("inspect", "colours")):
        assert "Did you mean 'base'?" in refused(*arguments)


def test_several_bases_need_a_word_which_unless_a_task_tells(ready, vit_folder):
    assert recast("mimic", vit_folder, "--sets", 1, "-o", "another.safetensors").exit_code == 0
    assert "another.safetensors, base.safetensors" in refused("adapt", "--task", "new", "--data", "data")
    assert recast("eval", "--all").exit_code == 0
    assert "belongs to base" in refused("eval", "--all", "--base", "another.safetensors")
    write("base: base.safetensors")
    assert recast("eval", "--all").exit_code == 0


def test_tasks_may_differ_in_a_sign_alone(tmp_path):
    (tmp_path / "recast.yaml").write_text("tasks: {a-b: {epochs: 1}, a_b: {epochs: 2}}")
    tasks = find_workspace(tmp_path).tasks
    assert tasks == {"a-b": {"epochs": 1}, "a_b": {"epochs": 2}}
