"""`recast adapt`."""

import shutil
from pathlib import Path

import pytest
import yaml
from fixtures.cli_helpers import QUICK, listing, recast, recast_json, refused

pytest_plugins = ["fixtures.cli"]

KEYS = {
    "task",
    "base_id",
    "coefficients",
    "places",
    "adapter",
    "head_parameters",
    "files",
    "val_top1",
    "test_top1",
    "linear_probe_val_top1",
    "linear_probe_test_top1",
    "epochs",
    "best_epoch",
    "images_per_second",
    "seconds",
    "timings",
    "device",
    "precision",
    "skipped_images",
}
SHARES = ("val_top1", "test_top1", "linear_probe_val_top1", "linear_probe_test_top1")


def test_json_says_what_was_learned(fresh):
    value = recast_json("adapt", "--task", "colours", *QUICK)
    assert value.keys() == KEYS
    assert all(0 <= value[name] <= 1 for name in SHARES)
    assert (value["task"], value["coefficients"], value["head_parameters"]) == ("colours", 48, 3 * 32 + 3)
    assert (value["epochs"], value["device"], value["skipped_images"]) == (1, "cpu", 0)
    assert value["precision"] in ("float32", "bfloat16")
    assert value["best_epoch"] in (0, 1)
    assert value["images_per_second"] > 0
    assert [Path(file).name for file in value["files"]] == ["coefficients.safetensors", "head.safetensors", "task.yaml"]
    assert all(Path(file).is_file() for file in value["files"])
    assert sorted(path.name for path in (fresh / "tasks" / "colours").iterdir()) == sorted(
        Path(file).name for file in value["files"]
    )


@pytest.mark.slow
def test_messages_follow_the_epochs_on_stderr_and_the_result_is_on_stdout(fresh):
    result = recast("adapt", "--task", "colours", "--epochs", 2)
    assert result.exit_code == 0
    first, second, third = result.stderr.splitlines()
    assert first.startswith("epoch  0  linear probe   val ")
    assert second.startswith("epoch  1  loss ")
    assert third.startswith("epoch  2  loss ")
    assert "48 coefficients, and a head of 99 parameters" in result.stdout
    assert "linear probe" in result.stdout


@pytest.mark.slow
def test_quiet_leaves_the_result_alone(fresh):
    result = recast("adapt", "--task", "colours", "--quiet", *QUICK)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "test top-1" in result.stdout


def test_the_coefficient_file_is_small(ready):
    assert (ready / "tasks" / "colours" / "coefficients.safetensors").stat().st_size < 2000


def test_a_finished_task_given_again_prints_its_result_and_changes_nothing(ready):
    before = listing()
    value = recast_json("adapt", "--task", "colours", *QUICK)
    assert value.keys() == KEYS
    assert value["epochs"] == 1
    assert listing() == before


def test_with_other_options_it_is_an_error_that_names_restart(ready):
    line = refused("adapt", "--task", "colours", "--epochs", 2)
    assert "epochs 1" in line
    assert "--restart" in line


@pytest.mark.slow
def test_restart_replaces_one_task_and_leaves_the_other(ready):
    before = listing("tasks/shades")
    assert recast_json("adapt", "--task", "colours", "--epochs", 2, "--restart")["epochs"] == 2
    assert listing("tasks/shades") == before


@pytest.mark.slow
def test_equal_commands_give_equal_bytes(ready):
    files = ("coefficients.safetensors", "head.safetensors")
    first = [(ready / "tasks" / "colours" / name).read_bytes() for name in files]
    shutil.rmtree("tasks/colours")
    assert recast("adapt", "--task", "colours", *QUICK).exit_code == 0
    assert [(ready / "tasks" / "colours" / name).read_bytes() for name in files] == first


@pytest.mark.slow
def test_every_option_is_recorded(fresh):
    options = {
        "recipe": "paper",
        "patience": 2,
        "epochs": 1,
        "lr": 0.01,
        "head-lr": 0.002,
        "batch-size": 8,
        "seed": 3,
        "image-size": 64,
    }
    options |= {
        "split": "pooled",
        "split-seed": 4,
        "class-weights": "balanced",
        "on-bad-image": "fail",
        "precision": "bfloat16",
        "adapter": "rosa",
        "rank": 2,
        "density": 0.01,
        "adapter-lr": 0.004,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert recast("adapt", "--task", "colours", "--device", "cpu", "--cross-fit", *flags).exit_code == 0
    record = yaml.safe_load((fresh / "tasks" / "colours" / "task.yaml").read_text())
    assert record["options"] == {name.replace("-", "_"): value for name, value in options.items()} | {
        "coefficients": True,
        "choose": 0,
        "statistic": "damped",
        "dictionary": "all",
        "cross_fit": True,
    }
    assert record["image_size"] == 64
    assert record["classes"] == ["blue", "green", "red"]


@pytest.mark.slow
def test_unreadable_images_are_left_out_counted_and_named(fresh):
    for name in ("blue/000.png", "red/003.png"):
        (fresh / "data" / "colours" / name).write_text("no image")
    result = recast("adapt", "--task", "colours", *QUICK)
    assert result.exit_code == 0
    warning = next(line for line in result.stderr.splitlines() if line.startswith("warning: "))
    assert "left out 2 images that could not be read" in warning
    assert "blue/000.png" in warning
    assert "red/003.png" in warning
    assert recast_json("adapt", "--task", "colours", *QUICK)["skipped_images"] == 2


def test_or_refused_where_that_is_asked_for(fresh):
    (fresh / "data" / "colours" / "blue" / "000.png").write_text("no image")
    line = refused("adapt", "--task", "colours", "--on-bad-image", "fail", *QUICK)
    assert "blue/000.png" in line


@pytest.mark.slow
@pytest.mark.parametrize("place", ["data/colours", "elsewhere"])
def test_images_are_found_by_the_name_of_the_task_or_by_flag(place, fresh):
    (fresh / "data" / "colours").rename(fresh / place)
    flags = () if place == "data/colours" else ("--data", place)
    assert recast("adapt", "--task", "colours", *flags, *QUICK).exit_code == 0
    assert yaml.safe_load((fresh / "tasks" / "colours" / "task.yaml").read_text())["data"] == place


@pytest.mark.slow
def test_the_automatic_batch_of_a_cpu_is_the_recipe_s(fresh):
    assert recast("adapt", "--task", "colours", *QUICK, "--batch-size", "auto").exit_code == 0
    record = yaml.safe_load((fresh / "tasks" / "colours" / "task.yaml").read_text())
    assert (record["options"]["batch_size"], record["batch_size"]) == ("auto", 32)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "many"], "--batch-size many is not a positive number"),
        (["--recipe", "mine"], "--recipe mine is unknown. Use default or paper."),
        (["--patience", "-1"], "--patience -1 is below 0"),
        (["--cache-size", "big"], "--cache-size big is not a size"),
    ],
)
def test_wrong_options_are_named(flags, message, fresh):
    result = recast("adapt", "--task", "colours", *flags)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_network_that_cannot_be_compiled_is_said_in_one_line(fresh, monkeypatch):
    import torch

    def broken(function):
        def run(images):
            raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found Set TORCHDYNAMO_VERBOSE=1")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    result = recast("adapt", "--task", "colours", *QUICK, "--compile")
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith(
        "error: The network cannot be compiled here: No working C++ compiler found. Leave out --comp"
    )


@pytest.mark.slow
def test_a_cache_that_cannot_be_used_is_a_warning_of_one_line(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("RECAST_CACHE", str(fresh / "file" / "folder"))
    result = recast("adapt", "--task", "colours", *QUICK)
    assert result.exit_code == 0
    warnings = [line for line in result.stderr.splitlines() if "not cached" in line]
    assert warnings
    assert all(line.startswith("warning: decoded images are not cached in ") for line in warnings)
