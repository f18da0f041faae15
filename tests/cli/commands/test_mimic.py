"""`recast mimic`."""

import pytest
from fixtures.cli_helpers import listing, recast, recast_json, refused
from helpers import CONV, draw_images, network
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recast_cli.engine.base.file import load_base

pytest_plugins = ["fixtures.cli"]

KEYS = {
    "base",
    "base_id",
    "architecture",
    "layout",
    "modules",
    "banks",
    "groups",
    "templates",
    "sets",
    "coefficients",
    "degrees_of_freedom",
    "max_relative_error",
    "min_cosine",
    "savings",
    "source_parameters",
    "base_parameters",
    "solver",
    "bytes",
    "seconds",
}


@pytest.fixture
def source(vit_folder):
    return vit_folder


def test_json_says_what_was_made(source, tmp_path):
    value = recast_json("mimic", source, "-o", "base.safetensors")
    assert value.keys() == KEYS
    base = load_base(tmp_path / "base.safetensors")
    assert (value["base"], value["base_id"]) == ("base.safetensors", base.base_id)
    assert value["architecture"].split(".")[0] == "vit_tiny_patch16_224"
    counts = ("modules", "banks", "groups", "templates", "sets", "coefficients", "degrees_of_freedom")
    assert [value[name] for name in counts] == [48, 48, 12, 1, 1, 48, 48]
    assert (value["max_relative_error"], value["min_cosine"]) == (0, 1)
    assert value["base_parameters"] == value["source_parameters"] + value["coefficients"]
    assert value["bytes"] == (tmp_path / "base.safetensors").stat().st_size


def test_people_see_coefficients_and_degrees_of_freedom_side_by_side(source):
    result = recast("mimic", source, "-o", "base.safetensors", "--layout", "paper-attention")
    assert result.exit_code == 0
    assert "48  (degrees of freedom 24)" in result.stdout
    assert "exact" in result.stdout
    assert result.stderr == ""


def test_the_same_command_gives_the_same_bytes_and_replaces_what_was_there(source, tmp_path):
    output = tmp_path / "base.safetensors"
    output.write_text("old")
    assert recast("mimic", source, "-o", output).exit_code == 0
    first = output.read_bytes()
    assert recast("mimic", source, "-o", output).exit_code == 0
    assert output.read_bytes() == first
    assert list(listing()) == [output.relative_to(tmp_path)]


@pytest.mark.parametrize("name", ["./nope", "/nope/w.bin", "~/nope"])
def test_what_can_only_be_a_path_is_none_of_timms_names(name):
    assert f"{name} does not exist" in refused("mimic", name, "-o", "base.safetensors")


def test_verify_compares_base_and_source(source, tmp_path):
    draw_images(tmp_path / "images", count=3)
    value = recast_json("mimic", source, "-o", "base.safetensors", "--verify", "images")
    assert value.keys() == KEYS | {"verify"}
    assert value["verify"].keys() == {"images", "agreement", "feature_cosine"}
    assert (value["verify"]["images"], value["verify"]["agreement"]) == (9, 1.0)
    assert len(value["verify"]["feature_cosine"]) == 48
    assert all(abs(cosine - 1) < 1e-6 for cosine in value["verify"]["feature_cosine"].values())


@pytest.mark.parametrize(
    ("layout", "coefficients", "note"),
    [("paper-attention", 48, False), ("paper-mlp", 96, True), ("paper-both", 144, True)],
)
def test_a_published_layout_is_built_over_the_budget_too_with_a_note(layout, coefficients, note, source):
    result = recast("mimic", source, "-o", "base.safetensors", "--layout", layout)
    assert result.exit_code == 0
    assert f"{coefficients}  (degrees of freedom {coefficients // 2})" in result.stdout
    assert result.stderr == (f"note: {coefficients} coefficients, over the budget of 49; built as asked.\n" * note)


def test_free_choice(source):
    options = ("--modules", "blocks.*.mlp.fc1,blocks.*.mlp.fc2", "--groups", 4, "--templates", 3, "--sets", 1)
    value = recast_json("mimic", source, "-o", "base.safetensors", *options)
    names = ("layout", "modules", "banks", "groups", "templates", "sets", "coefficients")
    assert [value[name] for name in names] == ["custom", 24, 8, 4, 3, 1, 72]


@pytest.mark.parametrize("budget", [1, 5, 12, 24])
def test_the_tool_stays_within_the_budget_and_exact(budget, source):
    value = recast_json("mimic", source, "-o", "base.safetensors", "--budget", budget)
    assert value["coefficients"] <= budget
    assert value["max_relative_error"] == 0


def test_fewer_templates_than_layers_are_a_warning_in_words_and_an_error_by_module(source):
    result = recast("mimic", source, "-o", "base.safetensors", "--templates", 1)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: fewer templates than layers lose weights")
    assert result.stderr.count("\n") == 1
    shown = [line for line in result.stdout.splitlines() if line.startswith("blocks.")]
    assert len(shown) == 12
    assert all("relative error 0." in line and "cosine 0." in line for line in shown)


def test_lossy_json_has_the_worst_error(source):
    value = recast_json("mimic", source, "-o", "base.safetensors", "--templates", 1)
    assert 0 < value["max_relative_error"] < 1
    assert 0 < value["min_cosine"] < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_templates_are_stored_in_the_type_asked_for(dtype, source):
    value = recast_json("mimic", source, "-o", "base.safetensors", "--dtype", dtype)
    tensors = load_file("base.safetensors")
    assert {str(tensors[name].dtype) for name in tensors if name.startswith("banks.")} == {f"torch.{dtype}"}
    assert {str(tensors[name].dtype) for name in tensors if name.startswith("coefficients.")} == {"torch.float32"}
    assert (value["max_relative_error"] == 0) == (dtype == "float32")


@pytest.mark.slow
@pytest.mark.parametrize("solver", [("gradient", "--loss", "mse", "--noise", 0), ("vae", "--kl", "--lr", 1e-3)])
def test_the_other_solvers(solver, source):
    value = recast_json("mimic", source, "-o", "base.safetensors", "--steps", 3, "--seed", 1, "--solver", *solver)
    assert value.keys() == KEYS
    assert value["solver"] == solver[0]
    assert value["max_relative_error"] > 0


@pytest.mark.slow
def test_a_weight_file_with_and_without_its_architecture():
    save_file(network(CONV, {"num_classes": 3}).state_dict(), "weights.safetensors")
    known = recast_json("mimic", "weights.safetensors", "--architecture", CONV, "-o", "known.safetensors")
    unknown = recast_json("mimic", "weights.safetensors", "-o", "unknown.safetensors")
    assert known["architecture"].split(".")[0] == CONV
    assert unknown["architecture"] is None
    with safe_open("unknown.safetensors", "pt") as file:
        assert file.metadata().keys() == {"recast"}
    shown = recast("mimic", "weights.safetensors", "-o", "b.safetensors").stdout
    assert "can be inspected and exported, not adapted" in shown
