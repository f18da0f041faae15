"""`recast export`."""

import errno
import os

import pytest
import timm
import torch
from fixtures.cli_helpers import recast, recast_json, refused
from helpers import VIT, VIT_ARGS, random_images, save_folder
from safetensors.torch import load_file, save_file

from recast_cli.engine.base.file import load_base
from recast_cli.engine.model.attach import merge

pytest_plugins = ["fixtures.cli"]

KEYS = {"base_id", "task", "format", "files", "bytes", "max_logit_difference", "identical", "opened"}


def test_json_of_a_task(ready):
    value = recast_json("export", "base.safetensors", "--task", "colours", "--format", "timm", "-o", "colours")
    assert value.keys() == KEYS
    assert (value["base_id"], value["task"]) == (load_base(ready / "base.safetensors").base_id, "colours")
    assert (value["format"], value["max_logit_difference"], value["identical"]) == ("timm", 0, None)
    assert value["files"] == ["colours/config.json", "colours/model.safetensors"]
    assert value["bytes"] == sum(os.path.getsize(file) for file in value["files"])
    model = timm.create_model("local-dir:colours", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["blue", "green", "red"]


def test_the_source_without_a_task_over_an_old_file(ready, vit_folder):
    (ready / "out.safetensors").write_text("old")
    value = recast_json("export", "base.safetensors", "--format", "safetensors", "-o", "out.safetensors")
    assert (value["task"], value["identical"], value["max_logit_difference"]) == (None, True, 0)
    before, after = load_file(vit_folder / "model.safetensors"), load_file("out.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_several_tasks_are_one_each_in_a_folder_and_that_is_said(ready):
    options = ("--task", "colours", "--task", "shades", "--format", "safetensors", "-o", "models")
    result = recast("export", "base.safetensors", *options)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("note: tasks differ in all their weights, so models gets a copy")
    assert "models/colours.safetensors" in result.stdout
    (ready / "models" / "colours.safetensors").unlink()
    (ready / "models" / "shades.safetensors").unlink()
    value = recast_json("export", "base.safetensors", *options)
    assert [each["task"] for each in value["items"]] == ["colours", "shades"]
    assert all(each.keys() == KEYS for each in value["items"])
    for each, classes in zip(value["items"], (3, 2), strict=True):
        timm.create_model(VIT, **{**VIT_ARGS, "num_classes": classes}, checkpoint_path=each["files"][0])


def test_people_read_what_opens_it(ready):
    result = recast("export", "base.safetensors", "--task", "colours", "--format", "timm", "-o", "colours")
    assert "timm.create_model('local-dir:colours', pretrained=True)" in result.stdout
    assert "equal to the merged network's" in result.stdout


@pytest.mark.slow
def test_onnx(ready):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="pip install 'recast-cli[onnx]' for this test")
    import onnxruntime

    save_folder(ready / "small", VIT, {**VIT_ARGS, "depth": 1})  # an export takes a time for each layer
    assert recast("mimic", "small", "-o", "small.safetensors").exit_code == 0
    value = recast_json("export", "small.safetensors", "--format", "onnx", "-o", "source.onnx")
    assert value["files"] == ["source.onnx", "source.onnx.json"]
    assert 0 <= value["max_logit_difference"] < 1e-4
    found = onnxruntime.InferenceSession("source.onnx").run(None, {"images": random_images(2).numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), merge(load_base(ready / "small.safetensors"))(random_images(2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "safetensor", "-o", "a.safetensors"), "Did you mean 'safetensors'?"),
        (("--format", "safetensors", "-o", "a"), "does not end in .safetensors"),
        (("--format", "onnx", "-o", "a.pt"), "does not end in .onnx"),
        (("--format", "safetensors", "-o", "no/a.safetensors"), "the folder no does not exist"),
        (("--format", "safetensors", "-o", "base.safetensors"), "is what would be exported"),
        (("--format", "safetensors", "-o", "tasks/colours/head.safetensors", "-t", "colours"), "is what would be"),
        (("--format", "timm", "-o", "data"), "data is there already"),
        (("--format", "timm", "-o", "base.safetensors"), "is what would be exported"),
        (("--format", "timm", "-o", "a", "--task", "colour"), "There is no task 'colour'"),
        (("--format", "timm", "-o", "a", "--task", "../a"), "cannot be the name of a task"),
        (("--format", "timm", "-o", "data", "-t", "colours", "-t", "shades"), "data is there already"),
        (("--format", "timm"), "--output"),
        (("-o", "a"), "--format"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, ready):
    if "onnx" in arguments:
        pytest.importorskip("onnxscript", reason="pip install 'recast-cli[onnx]' for this test")
    assert message in refused("export", "base.safetensors", *arguments)


@pytest.mark.parametrize("base", ["missing.safetensors", "tasks/colours/head.safetensors", "plain.safetensors"])
def test_what_is_no_base(base, ready):
    save_file({"a": torch.ones(2)}, "plain.safetensors")
    refused("export", base, "--format", "timm", "-o", "a")


def test_a_task_of_another_base(ready, conv_base):
    from recast_cli.engine.base.file import save_base

    save_base(conv_base, ready / "other.safetensors")
    line = refused("export", "other.safetensors", "--task", "colours", "--format", "timm", "-o", "a")
    assert "belongs to base" in line


@pytest.mark.parametrize("format", ["safetensors", "timm"])
@pytest.mark.parametrize("where", ["recast_cli.engine.storage.writer.TensorWriter.write", "os.fsync"])
def test_a_full_disk_leaves_nothing_half_written(where, format, ready, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, full)
    name = "out.safetensors" if format == "safetensors" else "out"
    line = refused("export", "base.safetensors", "--task", "colours", "--format", format, "-o", name, code=3)
    assert line.startswith(f"error: {name}: No space left on device. ")


@pytest.fixture
def unknown(ready, vit_folder):
    """A base whose architecture nobody knows."""
    assert recast("mimic", vit_folder / "model.safetensors", "-o", "unknown.safetensors").exit_code == 0
    return "unknown.safetensors"


def test_an_unknown_architecture_gives_its_tensors_back(unknown, vit_folder):
    value = recast_json("export", unknown, "--format", "safetensors", "-o", "out.safetensors")
    assert (value["identical"], value["max_logit_difference"]) == (True, None)
    before, after = load_file(vit_folder / "model.safetensors"), load_file("out.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "bit by bit" in recast("export", unknown, "--format", "safetensors", "-o", "out.safetensors").stdout


@pytest.mark.parametrize(("format", "name"), [("timm", "out"), ("onnx", "out.onnx")])
def test_an_unknown_architecture_has_no_network(format, name, unknown):
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="pip install 'recast-cli[onnx]' for this test")
    line = refused("export", unknown, "--format", format, "-o", name)
    assert "no known architecture" in line
    assert "--format safetensors" in line


@pytest.mark.parametrize("columns", ["40", "100"])
def test_a_path_is_never_broken_in_two(columns, ready, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    name = "a-name-that-is-long-" * 6
    shown = recast("export", "base.safetensors", "--format", "timm", "-o", name).stdout
    assert f"'local-dir:{name}'," in shown
    assert f"{name}/config.json," in shown
