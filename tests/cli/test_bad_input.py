"""Wrong input: exit status 2, one line that says what was wrong and what to do, and nothing half-written."""

import os
import shutil

import pytest
import torch
from fixtures.cli_helpers import QUICK, recast, refused
from helpers import VIT, save_folder
from safetensors.torch import load_file, save_file

pytest_plugins = ["fixtures.cli"]

OUTPUT = ("-o", "new.safetensors")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bogus",), "No such command 'bogus'"),
        (("mimik",), "Did you mean 'mimic'? See"),
        (("mimic",), "SOURCE"),
        (("mimic", VIT), "--output"),
        (("mimic", VIT, *OUTPUT, "--grups", 3), "--grups"),
        (("mimic", VIT, *OUTPUT, "--groups", "x"), "--groups"),
        (("adapt",), "--task"),
        (("predict", "--task", "colours"), "IMAGE"),
        (("eval",), "Give --task NAME, --all"),
        (("eval", "--all", "--task"), "--task"),
        (("inspect",), "FILE_OR_TASK"),
        (("--bogus",), "--bogus"),
    ],
)
def test_usage(arguments, says, ready):
    line = refused(*arguments)
    assert says in line
    assert "?." not in line


def test_missing_files(ready):
    assert "nothing.safetensors does not exist" in refused("mimic", "nothing.safetensors", *OUTPUT)
    assert "nothing.pth does not exist" in refused("mimic", VIT, "--weights", "nothing.pth", *OUTPUT)
    assert "nothing.safetensors does not exist" in refused("eval", "--all", "--base", "nothing.safetensors")
    assert "nothing.safetensors does not exist" in refused("inspect", "nothing.safetensors")
    assert "There is no task 'nothing'" in refused("eval", "--task", "nothing")
    assert "nothing does not exist" in refused("adapt", "--task", "new", "--data", "nothing")
    assert "nothing does not exist" in refused("eval", "--task", "colours", "--data", "nothing")
    assert "No images for task new" in refused("adapt", "--task", "new")


def test_no_base_here(tmp_path):
    for arguments in (("adapt", "--task", "new"), ("eval", "--data", ".")):
        assert "recast mimic SOURCE" in refused(*arguments)
    assert "No tasks in" in refused("eval", "--all")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_truncated_files(ready, vit_folder):
    shutil.copy(vit_folder / "model.safetensors", "model.safetensors")
    for name in ("model.safetensors", "base.safetensors", "tasks/colours/head.safetensors"):
        cut(ready / name)
    assert "model.safetensors is truncated" in refused("mimic", "model.safetensors", *OUTPUT)
    assert "base.safetensors is truncated" in refused("inspect", "base.safetensors")
    assert "base.safetensors is truncated" in refused("eval", "--all", "--base", "base.safetensors")
    assert "head.safetensors is truncated" in refused("inspect", "colours")


@pytest.mark.parametrize("content", [b"", b"no", b"x" * 100, b"\x50\0\0\0\0\0\0\0" + b"{" * 80])
def test_files_that_are_not_safetensors(content, ready):
    (ready / "wrong.safetensors").write_bytes(content)
    for arguments in (("mimic", "wrong.safetensors", *OUTPUT), ("inspect", "wrong.safetensors")):
        assert "wrong.safetensors" in refused(*arguments)
    assert "wrong.safetensors" in refused("eval", "--all", "--base", "wrong.safetensors")


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_files_that_are_no_weights(suffix, ready):
    (ready / f"wrong.{suffix}").write_text("no weights")
    assert f"wrong.{suffix} is not a weight file" in refused("mimic", f"wrong.{suffix}", *OUTPUT)


def test_a_pickle_with_code_in_it_is_not_run(ready):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, ("boom",)

    torch.save({"weight": Bomb()}, "bomb.pt")
    assert "Save its state dict" in refused("mimic", "bomb.pt", *OUTPUT)


def test_a_base_where_a_task_is_wanted_and_the_reverse(ready):
    assert "coefficients file, and a base is wanted" in refused(
        "eval", "--all", "--base", "tasks/colours/coefficients.safetensors"
    )
    shutil.copy("base.safetensors", "tasks/colours/coefficients.safetensors")
    assert "is a base file, and a task's coefficients are wanted" in refused("eval", "--task", "colours")
    assert "is a base file of recast" in refused("mimic", "base.safetensors", *OUTPUT)
    assert "cannot be the name of a task" in refused("eval", "--task", "tasks/colours")


def test_a_plain_file_where_a_base_is_wanted(ready, vit_folder):
    line = refused("eval", "--all", "--base", vit_folder / "model.safetensors")
    assert "not a base" in line
    assert "recast mimic" in line


def test_a_task_of_another_base(ready, vit_folder):
    assert recast("mimic", vit_folder, "-o", "base.safetensors", "--budget", 24).exit_code == 0
    for arguments in (("eval", "--all"), ("predict", "--task", "colours", "x.png")):
        assert "belongs to base" in refused(*arguments)
    assert "belongs to base" in refused("inspect", "colours", "--base", "base.safetensors")
    assert "finished with base_id" in refused("adapt", "--task", "colours", *QUICK)


def test_a_task_that_is_not_finished_or_damaged(ready):
    (ready / "tasks" / "colours" / "task.yaml").unlink()
    assert "task.yaml is missing" in refused("eval", "--task", "colours")
    for content in ("classes: [", "just text", "name: shades"):
        (ready / "tasks" / "shades" / "task.yaml").write_text(content)
        assert "--restart" in refused("eval", "--task", "shades")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--modules", "blocks.*.nothing"), "matches no module"),
        (("--layout", "paper-resnet"), "Roles here: "),
        (("--layout", "paper-atention"), "Did you mean 'paper-attention'?"),
        (("--layout", "paper-mlp", "--groups", 2), "Leave out --layout"),
        (("--templates", 3), "more than the 2 layers"),
        (("--groups", 13), "more than the 12 layers"),
        (("--groups", 0), "below 1"),
        (("--budget", 0), "below 1"),
        (("--solver", "magic"), "exact, gradient or vae"),
        (("--steps", 5), "does not belong to --solver exact"),
        (("--kl",), "does not belong to --solver exact"),
        (("--solver", "gradient", "--kl"), "does not belong to --solver gradient"),
        (("--solver", "vae", "--noise", 1), "does not belong to --solver vae"),
        (("--solver", "gradient", "--loss", "l7"), "smooth-l1"),
        (("--solver", "gradient", "--steps", 0), "out of range"),
        (("--solver", "gradient", "--lr", "nan"), "out of range"),
        (("--dtype", "int8"), "float32, bfloat16, float16"),
        (("--verify", "nowhere"), "nowhere does not exist"),
        (("--device", "gpu"), "--device gpu is unknown"),
        (("--architecture", VIT), "Leave out --architecture"),
        (("--weights", "x.pth"), "does not apply"),
    ],
)
def test_options_of_mimic(options, says, vit_folder):
    assert says in refused("mimic", vit_folder, *OUTPUT, *options)


def test_more_templates_than_memory(vit_folder, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert "more than the memory" in refused("mimic", vit_folder, *OUTPUT)


def test_weights_that_are_no_numbers(vit_folder):
    tensors = load_file(vit_folder / "model.safetensors")
    tensors["blocks.0.attn.qkv.weight"][0, 0] = float("nan")
    save_file(tensors, "model.safetensors")
    assert "NaN" in refused("mimic", "model.safetensors", "--modules", "blocks.*.attn.qkv", *OUTPUT)


def test_unknown_names_of_timm(vit_folder):
    assert "Did you mean 'vit_tiny_patch16_224'?" in refused("mimic", "vit_tinny_patch16_224", *OUTPUT)
    weights = vit_folder / "model.safetensors"
    assert "Did you mean" in refused("mimic", weights, "--architecture", "vit_tinny_patch16_224", *OUTPUT)
    assert "do not fit resnet18" in refused("mimic", weights, "--architecture", "resnet18", *OUTPUT)


def test_outputs_that_cannot_be(tmp_path, vit_folder):
    shutil.copytree(vit_folder, "model")
    shutil.copy("model/model.safetensors", "weights.safetensors")
    (tmp_path / "folder").mkdir()
    assert "does not exist" in refused("mimic", "model", "-o", "nowhere/base.safetensors")
    assert "folder is a folder" in refused("mimic", "model", "-o", "folder")
    file = "weights.safetensors"
    assert "is the source itself" in refused("mimic", file, "-o", f"./{file}")
    assert "is the source itself" in refused("mimic", VIT, "--weights", file, "-o", file)
    assert "is the source itself" in refused("mimic", "model", "-o", "model/model.safetensors")


@pytest.mark.parametrize("name", ["../up", "a/b", "/root", "..", ".hidden", "", " ", "a\\b", "a\nb", "-x"])
def test_names_of_tasks_with_a_path_in_them(name, ready):
    for arguments in (("adapt", f"--task={name}"), ("eval", f"--task={name}"), ("predict", "x.png", f"--task={name}")):
        assert "cannot be the name of a task" in refused(*arguments)


def test_cuda_asked_for_and_absent(ready, vit_folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    image = "data/colours/red/000.png"
    for arguments in (
        ("adapt", "--task", "new", "--data", "data/colours"),
        ("eval", "--all"),
        ("predict", "--task", "colours", image),
        ("mimic", vit_folder, *OUTPUT),
    ):
        assert "no such CUDA device" in refused(*arguments, "--device", "cuda")


@pytest.mark.parametrize("share", [90, -0.1, "nan", 1.01])
def test_a_threshold_is_a_share(share, ready):
    assert "between 0 and 1" in refused("eval", "--all", f"--fail-under={share}")


def test_a_size_that_the_weights_fix(ready):
    save_folder(ready / "mixer", "mixer_s16_224", {"img_size": 32, "mlp_ratio": [0.1, 0.1], "num_classes": 3})
    assert recast("mimic", "mixer", "-o", "mixer.safetensors").exit_code == 0
    options = ("--data", "data/colours", "--base", "mixer.safetensors", "--image-size", 64)
    assert "fix the image size" in refused("adapt", "--task", "new", *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--epochs", 0), "--epochs 0"),
        (("--lr", -1), "--lr -1"),
        (("--batch-size", 0), "--batch-size 0"),
        (("--image-size", 0), "--image-size 0"),
        (("--split", "odd"), "auto or pooled"),
        (("--class-weights", "odd"), "none or balanced"),
        (("--on-bad-image", "odd"), "skip or fail"),
        (("--device", "gpu"), "--device gpu"),
    ],
)
def test_options_of_adapt(options, says, ready):
    assert says in refused("adapt", "--task", "new", "--data", "data/colours", *options)


def test_a_base_of_an_unknown_architecture(ready, vit_folder):
    assert recast("mimic", vit_folder / "model.safetensors", "-o", "unknown.safetensors").exit_code == 0
    line = refused("adapt", "--task", "new", "--data", "data/colours", "--base", "unknown.safetensors")
    assert "--architecture" in line
    assert "--architecture" in refused("eval", "--data", "data/colours", "--base", "unknown.safetensors")
