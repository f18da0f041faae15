"""Two processes under torchrun against one, with Gloo on the CPU."""

import os
import subprocess
import sys

import pytest
import torch
from cli_helpers import ROOT
from helpers import draw_images
from safetensors.torch import load_file

from recast_cli.engine import ranks
from recast_cli.engine.base import save_base

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def adapt(processes, *arguments):
    """`recast adapt` in a process alone, or in several."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    return subprocess.run(
        [*launcher, "-m", "recast_cli", "adapt", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


@pytest.fixture
def folder(vit_base, tmp_path):
    save_base(vit_base, tmp_path / "base.safetensors")
    # 35 images: batches and shares of odd sizes, the last batch with fewer images than there are processes
    draw_images(tmp_path / "data", count=17, classes=("blue", "green", "red"))
    for number in range(14):
        (tmp_path / "data" / "red" / f"{number:03}.png").unlink()
    return tmp_path


def test_two_processes_learn_what_one_learns(folder):
    recipe = ["--recipe", "paper", "--epochs", 3, "--batch-size", 6, "--class-weights", "balanced", "--lr", 0.01]
    alone = adapt(1, "--task", "alone", "--data", "data", *recipe)
    together = adapt(2, "--task", "together", "--data", "data", *recipe)
    assert alone.returncode == together.returncode == 0, together.stderr
    one, two = (load_file(folder / "tasks" / name / "coefficients.safetensors") for name in ("alone", "together"))
    start = load_file(folder / "base.safetensors")
    first = next(value for name, value in start.items() if name.startswith("coefficients."))
    assert (one["coefficients"][: first.numel()] - first.flatten()).abs().max() > 1e-3  # they did move
    torch.testing.assert_close(one["coefficients"], two["coefficients"], rtol=0, atol=1e-5)
    heads = [load_file(folder / "tasks" / name / "head.safetensors") for name in ("alone", "together")]
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=1e-5)
    # only the first process talks, and only it writes
    lines = [line for line in together.stderr.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["0", "1", "2", "3"]
    assert together.stdout.count("test top-1") == 1
    assert sorted(path.name for path in (folder / "tasks" / "together").iterdir()) == [
        "coefficients.safetensors",
        "head.safetensors",
        "task.yaml",
    ]


def test_wrong_input_is_said_once(folder):
    failed = adapt(2, "--task", "x", "--data", "nowhere")
    assert failed.returncode != 0
    assert failed.stderr.count("error: The image folder nowhere does not exist") == 1


def test_a_process_alone_shares_nothing():
    rows = torch.arange(6).reshape(3, 2)
    assert ranks.world() == 1
    assert ranks.rank() == 0
    assert torch.equal(ranks.mine(rows), rows)
    assert torch.equal(ranks.gather(rows, 3), rows)
    assert ranks.from_first(lambda: 7) == 7
    with ranks.first_goes_first(), ranks.join(torch.device("cpu")):
        ranks.add([rows])
    assert torch.equal(rows, torch.arange(6).reshape(3, 2))
