"""`recast compare`."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.cli_helpers import ROOT, finished, listing, process, recast, recast_json, refused
from fixtures.compare import TIMES, YAML, plan_of

from recast_cli.engine.compare import runner as engine
from recast_cli.engine.compare import trial
from recast_cli.engine.compare.runner import compare, read_results

pytest_plugins = ["fixtures.compare"]


@pytest.mark.slow
def test_the_results_of_a_finished_comparison(whole):
    value = recast_json("compare", "c.yaml", "-o", "out")
    assert value.keys() == {"directory", "standings", "failed", "files"}
    assert value["failed"] == 0
    assert [Path(file).name for file in value["files"]] == ["runs.jsonl", "table.md", "plot.png"]
    assert all(Path(file).is_file() for file in value["files"])
    assert {row["method"] for row in value["standings"]} == {"linear-probe", "head", "recast", "listed"}
    assert all(0 <= row["mean"] <= 1 and row["runs"] == row["wanted"] for row in value["standings"])
    shown = recast("compare", "c.yaml", "-o", "out")
    assert shown.exit_code == 0
    assert shown.stderr == ""
    assert "linear-probe" in shown.stdout
    assert "Test top-1 in percent, mean ± standard deviation over 2 seeds" in shown.stdout


@pytest.mark.slow
def test_a_finished_comparison_needs_neither_images_nor_timm(whole):
    for path in sorted(Path("images").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    code = "import sys; from recast_cli.cli.main import app\ntry: app(['compare', 'c.yaml', '-o', 'out', '-q'])\n"
    code += "finally: print({'timm', 'torchvision'} & set(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stderr == "set()\n"


@pytest.mark.slow
def test_from_nothing_to_a_table(folder):
    Path("c.yaml").write_text(YAML[: YAML.index("methods:")] + "methods:\n  linear-probe:\n  recast: {lr: 0.02}\n")
    result = recast("compare", "c.yaml")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("vit  ") and "  val " in line and "  test " in line for line in lines)
    assert "| linear-probe |" in Path("c/table.md").read_text().replace("**", "")
    before = listing("c")
    assert recast("compare", "c.yaml", "--quiet").exit_code == 0
    assert listing("c") == before


def test_a_dry_run_says_which_runs_there_are_and_does_nothing(folder):
    before = listing()
    value = recast_json("compare", "c.yaml", "--dry-run")
    assert (value["runs"], value["done"]) == (2 + 4 + 8 + 6, 0)
    assert {row["method"]: row["runs"] for row in value["methods"]} == {
        "linear-probe": 2,
        "head": 4,
        "recast": 8,
        "listed": 6,
    }
    assert "20 runs, 0 done" in recast("compare", "c.yaml", "--dry-run").stdout
    assert listing() == before


@pytest.mark.slow
def test_a_dry_run_counts_what_is_done(whole):
    value = recast_json("compare", "c.yaml", "-o", "out", "--dry-run")
    assert value["runs"] == value["done"] >= 20


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (YAML.replace("epochs", "epoch"), (), "unknown key 'epoch'. Did you mean 'epochs'?"),
        (YAML.replace("images/shades", "nowhere"), (), "tasks.shades.data: the folder nowhere does not exist"),
        (YAML.replace("images/shades", "nowhere"), ("--dry-run",), "tasks.shades.data"),
        (YAML.replace("vit: vit", "vit: none-such"), (), "sources.vit: "),
        (YAML, ("--jobs", 0), "--jobs 0 is below 1"),
        (YAML, ("-o", "no/where"), "does not exist"),
        (YAML, ("-o", "c.yaml"), "c.yaml is a file"),
        (YAML, ("--device", "quantum"), "--device quantum is unknown"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, flags, message, folder):
    Path("c.yaml").write_text(text)
    assert message in refused("compare", "c.yaml", *flags)


@pytest.mark.slow
def test_a_file_of_which_nothing_can_run_is_refused(folder):
    Path("c.yaml").write_text(YAML[: YAML.index("methods:")] + "methods:\n  recast: {lr: 0.02, adapter: piggyback}\n")
    result = recast("compare", "c.yaml", "-q", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "nothing of it can run: The adapter piggyback needs" in result.stderr


@pytest.mark.slow
def test_a_failed_run_is_status_1_and_the_rest_is_done(folder, monkeypatch):
    sound = trial.do_run

    def faulty(plan, run, *rest):
        if run.method == "head":
            raise OSError("disk on fire")
        return sound(plan, run, *rest)

    monkeypatch.setattr(trial, "do_run", faulty)
    Path("c.yaml").write_text(YAML[: YAML.index("methods:")] + "methods:\n  linear-probe:\n  head:\n")
    result = recast("compare", "c.yaml", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["failed"] == 4
    *warnings, last = [line for line in result.stderr.splitlines() if not line.startswith("vit  ")]
    assert len(warnings) == 4
    assert all("disk on fire" in line for line in warnings)
    assert last.startswith("error: 4 runs failed.")


def without_times(results):
    """What must be equal however the runs were done."""
    return {key: {name: line[name] for name in line.keys() - TIMES} for key, line in results.items()}


@pytest.mark.slow
def test_two_processes_give_the_lines_of_one_and_survive_the_death_of_one(folder, monkeypatch):
    """A worker's death is told in a line and costs one run, which the next call does."""
    plan = plan_of(
        YAML[: YAML.index("methods:")] + "methods:\n  linear-probe:\n  head:\n  recast: {lr: [0.01, 0.02]}\n"
    )
    troubles, workers = [], []
    kind = engine.multiprocessing.get_context("spawn").Process
    start = kind.start
    monkeypatch.setattr(kind, "start", lambda worker: (start(worker), workers.append(worker)))

    def on_run(run, line, trouble):
        if line is None:
            troubles.append(trouble)
        elif len(workers) == 2 and not troubles:
            workers[0].kill()

    _, failed = compare(plan, Path("two"), jobs=2, on_run=on_run)
    assert failed == 1
    assert troubles == ["its process died with exit code -9"]
    assert len(workers) == 3
    assert not any(worker.is_alive() for worker in workers)
    done = []
    two, failed = compare(plan, Path("two"), on_run=lambda run, line, trouble: done.append(run))
    assert failed == 0
    assert done
    one, _ = compare(plan, Path("one"))
    assert without_times(two) == without_times(one)


def alive(process):
    """Whether a process still does anything."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_an_interrupt_leaves_no_process_and_a_folder_to_go_on_from(folder):
    plan_of(YAML.replace("epochs: 1", "epochs: 50\npatience: 0"))
    running = process("compare", "c.yaml", "--jobs", 2, start_new_session=True)
    lines = Path("c/runs.jsonl")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (lines.exists() and lines.read_bytes().count(b"\n")):
        time.sleep(0.1)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 130
    assert stderr.splitlines()[-1].startswith("error: Interrupted.")
    assert len(children) >= 2
    while time.monotonic() < deadline and any(map(alive, children)):
        time.sleep(0.1)  # Python's tracker of resources ends a moment after its parent
    assert not any(map(alive, children))
    assert len(read_results(Path("c"))) >= 1
    assert finished("compare", "c.yaml", "--dry-run")[0] == 0
