"""Two processes under torchrun against one, with Gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.cli_helpers import ROOT
from helpers import draw_images
from safetensors.torch import load_file

from recast_cli.engine.base.file import save_base
from recast_cli.engine.runtime import distributed

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def adapt(processes, *arguments, path=str(ROOT)):
    """`recast adapt` in a process alone, or in several, with modules from `path`."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    return subprocess.run(
        [*launcher, "-m", "recast_cli", "adapt", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
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
    recipe += ["--precision", "float32"]  # in bfloat16 products are rounded otherwise in batches of another size
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


def test_two_processes_choose_and_learn_what_one_does(folder):
    recipe = ["--choose", 20, "--lr", 0.01, "--epochs", 3, "--batch-size", 6, "--precision", "float32"]
    recipe += ["--class-weights", "balanced"]
    for processes, name in ((1, "alone"), (2, "together")):
        done = adapt(processes, "--task", name, "--data", "data", *recipe)
        assert done.returncode == 0, done.stderr
    for file in ("coefficients.safetensors", "head.safetensors"):
        one, two = (load_file(folder / "tasks" / name / file) for name in ("alone", "together"))
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    learned = load_file(folder / "tasks" / "alone" / "coefficients.safetensors")["coefficients"]
    assert (learned != 0).all()


def test_wrong_input_is_said_once(folder):
    failed = adapt(2, "--task", "x", "--data", "nowhere")
    assert failed.returncode != 0
    assert failed.stderr.count("error: The image folder nowhere does not exist") == 1


def test_wrong_input_is_said_by_a_first_process_that_is_the_last_to_find_it(folder):
    late = "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(1.5)\n"
    (folder / "sitecustomize.py").write_text(late)
    failed = adapt(2, "--task", "x", "--data", "nowhere", path=os.pathsep.join([str(folder), str(ROOT)]))
    assert failed.returncode != 0
    assert failed.stderr.count("error: The image folder nowhere does not exist") == 1


def test_an_error_that_only_another_process_has_is_told(folder):
    (folder / "elsewhere").mkdir()
    astray = f"import os\nif os.environ.get('RANK') == '1':\n    os.chdir({str(folder / 'elsewhere')!r})\n"
    (folder / "sitecustomize.py").write_text(astray)
    failed = adapt(2, "--task", "x", "--data", "data", path=os.pathsep.join([str(folder), str(ROOT)]))
    assert failed.returncode != 0
    assert failed.stderr.count("error: ") == 1
    assert "error: process 1: No base in " in failed.stderr
    assert not (folder / "tasks").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("victim", ["worker", "launcher"])
def test_a_killed_run_leaves_no_process_and_can_be_gone_on_with(victim, folder):
    """One of two workers is killed in the middle of an epoch, or the user interrupts torchrun."""
    flags = ["--task", "t", "--data", "data", "--recipe", "paper", "--epochs", "400", "--batch-size", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, "2", "-m", "recast_cli", "adapt", *flags]
    with open(folder / "log", "w") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    wait_for(lambda: "epoch  2" in (folder / "log").read_text())
    workers = children(launcher.pid)
    assert len(workers) == 2
    if victim == "worker":
        os.kill(workers[1], signal.SIGKILL)
    else:
        launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) != 0
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert (folder / "log").read_text().count("Interrupted") == (1 if victim == "launcher" else 0)
    assert (folder / "tasks" / "t" / "resume.pt").exists()
    assert not (folder / "tasks" / "t" / "task.yaml").exists()
    (done,) = [torch.load(folder / "tasks" / "t" / "resume.pt", weights_only=True)["history"][-1]["number"]]
    assert done >= 2
    # gone on with by a process alone: it is the same run
    alone = subprocess.Popen(
        [sys.executable, "-m", "recast_cli", "adapt", *flags], stderr=subprocess.PIPE, text=True, env=environment
    )
    lines = [alone.stderr.readline() for _ in range(done + 2)]
    alone.send_signal(signal.SIGINT)
    assert "Interrupted" in alone.communicate(timeout=60)[1]
    assert alone.returncode == 130
    assert lines[done].startswith(f"epoch {done:2d}")
    assert lines[done + 1].startswith(f"epoch {done + 1:2d}")


def children(process):
    """Process ids of the children of a process."""
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for(condition, seconds=120):
    """Wait until a condition holds; fail where it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_process_alone_shares_nothing():
    rows = torch.arange(6).reshape(3, 2)
    assert distributed.world() == 1
    assert distributed.rank() == 0
    assert torch.equal(distributed.mine(rows), rows)
    assert torch.equal(distributed.gather(rows, 3), rows)
    assert distributed.from_first(lambda: 7) == 7
    with distributed.first_goes_first(), distributed.join(torch.device("cpu")):
        distributed.add([rows])
    assert torch.equal(rows, torch.arange(6).reshape(3, 2))
