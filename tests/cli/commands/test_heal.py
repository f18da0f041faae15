"""`recast mimic --heal`."""

import pytest
from fixtures.cli_helpers import QUICK, recast, recast_json, refused
from helpers import draw_images

from recast_cli.engine.base.file import load_base
from recast_cli.engine.mimic.heal import distil

pytest_plugins = ["fixtures.cli"]
SHARED = ("--modules", "blocks.*.mlp.fc?", "--groups", 1, "--templates", 6)


@pytest.fixture(autouse=True)
def _few_epochs(monkeypatch):
    monkeypatch.setattr(distil, "EPOCHS", 3)


@pytest.mark.slow
def test_a_healed_base_says_so_and_a_task_is_adapted_on_it(vit_folder, tmp_path):
    draw_images(tmp_path / "data" / "colours")
    made = recast_json("mimic", vit_folder, "-o", "base.safetensors", *SHARED, "--heal", "data")
    assert made["healed"].keys() == {"images", "pictures", "epochs", "best_epoch", "divergence"}
    assert made["healed"]["images"] == 36
    steps = made["healed"]["divergence"]
    assert steps["healed"] <= steps["layers"] < steps["mimicked"]
    assert load_base("base.safetensors").solver["healed"] == made["healed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "data"]
    learned = recast_json("adapt", "--task", "colours", *QUICK)
    assert learned["base_id"] == made["base_id"]
    assert recast_json("inspect", "base.safetensors")["solver"]["healed"] == made["healed"]


@pytest.mark.slow
def test_people_are_told_what_it_did_instead_of_being_warned(vit_folder, data):
    plain = recast("mimic", vit_folder, "-o", "base.safetensors", *SHARED)
    assert "--heal" in plain.stderr
    result = recast("mimic", vit_folder, "-o", "base.safetensors", *SHARED, "--heal", data)
    assert "36 images, divergence from the source" in result.stdout
    assert "blocks.0.mlp.fc1" in plain.stdout  # how far its weights are from the source's
    assert "blocks.0.mlp.fc1" not in result.stdout
    assert "warning" not in result.stderr


@pytest.mark.slow
def test_healed_then_rounded(vit_folder, data):
    small = ("--bits", 4, "--group-size", 16, "--calibrate", data)
    made = recast_json("mimic", vit_folder, "-o", "base.safetensors", *SHARED, "--heal", data, *small)
    assert made["compression"]["calibrated"]["images"] == 36
    base = load_base("base.safetensors")
    assert base.base_id == made["base_id"]
    assert base.solver["healed"] == made["healed"]
    assert base.codes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--heal", "images"), "every layer has a template of its own"),
        ((*SHARED, "--heal", "nothing"), "The folder of images nothing does not exist"),
        ((*SHARED, "--heal", "empty"), "There are no images in empty"),
        ((*SHARED, "--heal", "images"), "--heal needs 16 images"),
        ((*SHARED, "--heal", "images", "--bits", 4), "--heal with --size or --bits needs --calibrate"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(options, says, vit_folder, tmp_path):
    draw_images(tmp_path / "images", count=5)
    (tmp_path / "empty").mkdir()
    assert says in refused("mimic", vit_folder, "-o", "new", *options)
    assert not (tmp_path / "new").exists()
