"""Start-up: what `recast` takes before it does anything, against a bare Typer application with as many commands.

    python tests/benchmarks/startup.py

Target: `recast --help` at most 1.5 times the bare application; neither help nor a task's inspection imports torch.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import arguments, race, report, run

from recast_cli.cli.registry import SUMMARIES
from recast_cli.engine.storage.header import FORMATS
from recast_cli.engine.task.task import Task, save_task

HEAD = """import typer
app = typer.Typer(add_completion=False, rich_markup_mode=None)
"""
COMMAND = """
@app.command()
def {name}(count: int = 1) -> None:
    "{summary}"
"""


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    recast = (sys.executable, "-m", "recast_cli")
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        commands = (COMMAND.format(name=f"{name}_", summary=summary) for name, summary in SUMMARIES.items())
        bare.write_text(HEAD + "".join(commands) + "\napp()\n", encoding="utf-8")
        task = save_example(Path(folder) / "tasks" / "example")
        commands_of: dict[str, tuple[str | Path, ...]] = {
            "python -c pass": (sys.executable, "-c", "pass"),
            "bare Typer --help": (sys.executable, bare, "--help"),
            "recast --help": (*recast, "--help"),
            "bare Typer COMMAND --help": (sys.executable, bare, "adapt-", "--help"),
            "recast adapt --help": (*recast, "adapt", "--help"),
            "recast inspect TASK": (*recast, "inspect", task),
            "python -c 'import torch'": (sys.executable, "-c", "import torch"),
        }
        seconds = race({case: lambda each=each: run(*each) for case, each in commands_of.items()}, options.rounds)
    against = {"recast --help": "bare Typer --help", "recast adapt --help": "bare Typer COMMAND --help"}
    rows: list[dict[str, Any]] = [
        {
            "case": case,
            "ms": 1e3 * value,
            "ratio to bare Typer": value / seconds[against[case]] if case in against else None,
            "target": "<= 1.5" if case == "recast --help" else None,
        }
        for case, value in seconds.items()
    ]
    report("startup", rows, options.json)


def save_example(folder: Path) -> Path:
    """A task with 48 coefficients and ten classes that was never trained."""
    classes = [f"class {number}" for number in range(10)]
    record = {
        "format": FORMATS["task"],
        "name": folder.name,
        "base_id": "0" * 32,
        "data": "data/example",
        "image_size": 224,
        "classes": classes,
        "split": {"kind": "hash", "test_images": [f"{name}/{number}.jpg" for name in classes for number in range(20)]},
        "options": {},
        "metrics": {"test_top1": 0.5, "linear_probe_test_top1": 0.5},
    }
    save_task(Task(folder.name, "0" * 32, torch.ones(48), torch.zeros(10, 192), torch.zeros(10), record), folder)
    return folder


if __name__ == "__main__":
    main()
