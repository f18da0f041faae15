"""`recast inspect`."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from fixtures.cli_helpers import QUICK, ROOT, recast, recast_json, refused
from safetensors.torch import load_file

pytest_plugins = ["fixtures.cli"]

BASE_KEYS = {
    "kind",
    "file",
    "base_id",
    "architecture",
    "source",
    "layout",
    "solver",
    "verified",
    "sets",
    "modules",
    "coefficients",
    "degrees_of_freedom",
    "parameters",
    "source_parameters",
    "savings",
    "bytes",
    "banks",
    "roles",
}
BANK_KEYS = {"name", "group", "modules", "frobenius", "entropy", "max_relative_error", "coefficient_similarity"}
TASK_KEYS = {
    "kind",
    "task",
    "base_id",
    "base",
    "coefficients",
    "places",
    "adapter",
    "head_parameters",
    "classes",
    "image_size",
    "metrics",
    "banks",
}


MODULES_AFTER = """
import sys
from recast_cli.cli.main import main
try:
    main()
finally:
    print(sorted({"torch", "timm", "torchvision", "safetensors.torch"} & set(sys.modules)), file=sys.stderr)
"""


ANYWHERE = (
    "colours",
    "tasks/colours --json",
    "colours shades",
    "colours shades --json",
    "tasks/colours/head.safetensors",
)
BESIDE_THE_BASE = (
    "colours --base base.safetensors",
    "colours --plot task.svg -q",
    "colours shades --plot tasks.png -q",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "gone"),
    [*((each, False) for each in ANYWHERE + BESIDE_THE_BASE), *((each, True) for each in ANYWHERE)],
)
def test_tasks_are_inspected_without_torch(arguments, gone, ready):
    if gone:
        (ready / "base.safetensors").unlink()
    result = subprocess.run(
        [sys.executable, "-c", MODULES_AFTER, "inspect", *arguments.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (result.returncode, result.stderr) == (0, "[]\n")
    if "--json" in arguments:
        assert json.loads(result.stdout)


def test_a_base(vit_folder):
    recast("mimic", vit_folder, "-o", "base.safetensors", "--layout", "paper-attention")
    value = recast_json("inspect", "base.safetensors")
    assert value.keys() == BASE_KEYS
    assert (value["kind"], value["coefficients"], value["degrees_of_freedom"]) == ("base", 48, 24)
    assert value["parameters"] == value["source_parameters"] + 48
    assert len(value["banks"]) == 6
    for bank in value["banks"]:
        assert bank.keys() == BANK_KEYS
        assert len(bank["modules"]) == 2
        assert bank["frobenius"] > 0
        assert bank["entropy"] > 0
        assert bank["max_relative_error"] == 0
        assert bank["coefficient_similarity"] == [pytest.approx([1, 0]), pytest.approx([0, 1])]


def test_a_base_of_one_template_a_module_compares_the_templates_of_a_role(vit_folder, tmp_path):
    recast("mimic", vit_folder, "-o", "base.safetensors")
    roles = recast_json("inspect", "base.safetensors")["roles"]
    assert [role["templates"] for role in roles] == [12, 12, 12, 12]
    assert all(role["frobenius"] > 0 and len(role["similarity"]) == 12 for role in roles)
    shown = recast("inspect", "base.safetensors", "--plot", "base.html").stdout
    header = next(line for line in shown.splitlines() if line.startswith("bank "))
    assert header.split() == ["bank", "layers", "entropy", "error"]  # nothing that no bank has
    assert "Cosine similarity of the templates of all groups" in (tmp_path / "base.html").read_text()


def test_what_is_undefined_is_null(vit_folder):
    recast("mimic", vit_folder, "-o", "base.safetensors", "--groups", 12)
    for bank in recast_json("inspect", "base.safetensors")["banks"]:
        assert (bank["frobenius"], bank["coefficient_similarity"]) == (None, None)
    table = recast("inspect", "base.safetensors").stdout
    assert "None" not in table
    assert "nan" not in table


@pytest.mark.parametrize("name", ["colours", "tasks/colours"])
def test_a_task_by_name_or_folder(name, ready):
    value = recast_json("inspect", name)
    assert value.keys() == TASK_KEYS
    assert (value["kind"], value["task"]) == ("task", "colours")
    assert (value["coefficients"], value["head_parameters"]) == (48, 99)
    assert value["classes"] == ["blue", "green", "red"]
    assert [bank.keys() for bank in value["banks"]] == [{"name", "group", "modules"}] * 6
    vector, base = load_file("tasks/colours/coefficients.safetensors")["coefficients"], load_file("base.safetensors")
    modules = [module for bank in value["banks"] for module in bank["modules"]]
    assert [each for module in modules for row in module["coefficients"] for each in row] == vector.tolist()
    for module in modules:
        assert module.keys() == {"module", "coefficients", "base", "moved"}
        assert module["base"] == base[f"coefficients.{module['module']}"].tolist()
        assert module["moved"] >= 0


def test_a_task_without_its_base(ready):
    (ready / "base.safetensors").unlink()
    value = recast_json("inspect", "colours")
    assert value.keys() == TASK_KEYS | {"vector"}
    assert (value["base"], value["banks"]) == (None, None)
    assert value["vector"] == load_file("tasks/colours/coefficients.safetensors")["coefficients"].tolist()
    assert "--base FILE" in recast("inspect", "colours").stdout


def test_several_tasks_are_compared(ready):
    value = recast_json("inspect", "colours", "shades")
    assert value.keys() == {"items", "similarity"}
    assert [item["task"] for item in value["items"]] == ["colours", "shades"]
    assert [value["similarity"][i][i] for i in range(2)] == pytest.approx([1, 1])
    assert -1 <= value["similarity"][0][1] <= 1
    assert "similarity" in recast("inspect", "colours", "shades").stdout


def test_several_files_of_different_kinds_are_listed(ready, vit_folder):
    value = recast_json("inspect", "colours", "base.safetensors", vit_folder / "model.safetensors")
    assert [item["kind"] for item in value["items"]] == ["task", "base", "safetensors"]
    assert value["similarity"] is None


@pytest.mark.parametrize("part", ["coefficients", "head"])
def test_any_other_safetensors_file(part, ready):
    value = recast_json("inspect", f"tasks/colours/{part}.safetensors")
    assert value.keys() == {"kind", "file", "bytes", "shards", "metadata", "tensors"}
    assert value["kind"] == "safetensors"
    assert value["metadata"].keys() == {"recast"}
    assert {"name": "coefficients", "shape": [48], "dtype": "F32"} in value["tensors"] or part == "head"


def test_people_see_every_tensor_of_a_file(vit_folder):
    result = recast("inspect", vit_folder / "model.safetensors")
    assert result.exit_code == 0
    assert "blocks.11.attn.qkv.weight" in result.stdout
    assert "96 x 32" in result.stdout


def test_a_tasks_name_wins_over_a_folder_and_may_look_like_a_file(ready):
    (ready / "colours").mkdir()
    assert recast_json("inspect", "colours")["kind"] == "task"
    shutil.copytree("data/shades", "data/shades.v2")
    assert recast("adapt", "--task", "shades.v2", *QUICK).exit_code == 0
    assert recast_json("inspect", "shades.v2")["task"] == "shades.v2"


def test_a_folder_without_a_task_is_refused(ready):
    assert "task.yaml is missing" in refused("inspect", "data")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_plots_of_a_base_and_of_tasks(suffix, ready):
    pytest.importorskip("recast_cli.engine.report.figures")
    for items in (("base.safetensors",), ("colours",), ("colours", "shades")):
        result = recast("inspect", *items, "--plot", f"plot.{suffix}", "--json")
        assert result.exit_code == 0, result.output
        assert result.stderr == f"wrote plot.{suffix}\n"
        assert (ready / f"plot.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize("plot", ["plot.doc", "plot", "no/plot.png"])
def test_where_a_plot_cannot_go(plot, ready):
    pytest.importorskip("recast_cli.engine.report.figures")
    refused("inspect", "base.safetensors", "--plot", plot)


@pytest.fixture
def chosen(ready, every_epoch_counts):
    """Beside the other tasks one that chose four coefficients, `few`, and one that chose three."""
    for name, count in (("few", 8), ("fewer", 6)):
        assert recast("adapt", "--task", name, "--data", "data/shades", "--choose", count, *QUICK).exit_code == 0
    return ready


@pytest.mark.slow
def test_a_task_that_chose_its_coefficients(chosen):
    value = recast_json("inspect", "few")
    assert value.keys() == TASK_KEYS
    assert (value["coefficients"], len(value["places"]), value["banks"]) == (4, 4, None)
    base, stored = load_file("base.safetensors"), load_file("tasks/few/coefficients.safetensors")
    for place, added in zip(value["places"], stored["coefficients"].tolist(), strict=True):
        assert place["added"] == added
        assert 0 <= place["entry"] < len(base[place["vector"]])
    shown = recast("inspect", "few").stdout
    assert "4 coefficients at 4 places, 8 numbers" in shown
    assert value["places"][0]["vector"] in shown


@pytest.mark.slow
def test_tasks_that_chose_are_alike_where_they_move_the_same_entries(chosen):
    stored = {name: load_file(f"tasks/{name}/coefficients.safetensors") for name in ("few", "fewer")}
    moves = [
        dict(zip(map(tuple, each["places"].tolist()), each["coefficients"].tolist(), strict=True))
        for each in stored.values()
    ]
    dot = sum(value * moves[1].get(place, 0.0) for place, value in moves[0].items())
    norms = [sum(value**2 for value in each.values()) ** 0.5 for each in moves]
    value = recast_json("inspect", "few", "fewer", "colours", "--plot", "tasks.svg")
    matrix = value["similarity"]
    assert matrix[0][1] == pytest.approx(dot / (norms[0] * norms[1]))
    assert (matrix[0][2], matrix[1][2]) == (0, 0)  # nothing in common with a task of the layout's coefficients


@pytest.mark.slow
def test_chosen_tasks_without_their_base_have_numbers_for_places(chosen):
    (chosen / "base.safetensors").unlink()
    value = recast_json("inspect", "few")
    stored = load_file("tasks/few/coefficients.safetensors")
    assert value["places"] == stored["places"].tolist()
    assert value["vector"] == stored["coefficients"].tolist()


@pytest.mark.slow
def test_the_report_of_a_base_shows_what_tasks_chose(chosen):
    assert recast("inspect", "base.safetensors", "--plot", "base.html").exit_code == 0
    page = (chosen / "base.html").read_text()
    assert "Entries that few chose" in page
    assert recast_json("inspect", "few")["places"][0]["vector"] in page
