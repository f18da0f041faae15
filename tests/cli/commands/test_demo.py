"""`recast demo`: everything offline in one command, and both tasks ahead of their linear probe."""

import json

import pytest
from fixtures.cli_helpers import process, recast, refused
from PIL import Image


@pytest.mark.slow
def test_the_demo_leaves_a_folder_that_works(tmp_path):
    running = process("demo", "--json")
    stdout, stderr = running.communicate(timeout=900)
    assert running.returncode == 0, stderr
    result = json.loads(stdout)
    assert sorted(result) == ["directory", "tasks"]
    assert len(result["tasks"]) == 2
    for task in result["tasks"]:
        assert task["coefficients"] < 50
        assert task["test_top1"] > task["linear_probe_test_top1"]
    folder = tmp_path / "recast-demo"
    for image in ("base.png", "tasks.png"):
        assert min(Image.open(folder / image).size) > 300
    for command in ("mimic", "adapt", "eval", "inspect"):
        assert f"\n$ recast {command} " in f"\n{stderr}"


def test_the_demo_leaves_other_folders_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "not empty" in refused("demo", "--directory", "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert "does not exist" in refused("demo", "--directory", "no/where")
    assert recast("demo", "--help").exit_code == 0
