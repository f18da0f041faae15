"""`recast demo`: the main job on an embedded model and drawn images, offline, in the commands a user would type."""

import contextlib
import io
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from recast_cli.cli.options import Debug, Json, Quiet
from recast_cli.cli.output import Output, columns
from recast_cli.engine.errors import RecastError
from recast_cli.engine.units import percent

MODEL = "vit"
RECIPE: dict[str, Any] = {"epochs": 5, "choose": 0}
"""The model was pretrained with its layout's coefficients in mind (docs/evidence/demo.md)."""


def demo(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Option("--directory", metavar="DIR", help="Where the demo happens; yours to play with afterwards.")
    ] = Path("recast-demo"),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show all of it: mimic, two tasks, eval and a plot. Offline, in two minutes.

    A small vision transformer and two drawn image folders are put into ./recast-demo, then come the commands as
    you would type them there.

    \b
        recast demo
        recast demo --directory /tmp/try --json
    """
    out = Output(as_json, quiet)
    tasks = lay_out(directory)
    commands = [
        f"recast mimic {MODEL} -o base.safetensors",
        *(f"recast adapt --task {task}" for task in tasks),
        "recast eval --all",
        "recast inspect base.safetensors --plot base.png",
        f"recast inspect {' '.join(tasks)} --plot tasks.png",
    ]
    shown = io.StringIO() if quiet else sys.stderr if as_json else sys.stdout
    with working_in(directory), contextlib.redirect_stdout(shown):
        for command in commands:
            out.note(f"\n$ {command}")
            run(context, command, quiet, debug)
    from recast_cli.cli.commands.adapt import summary
    from recast_cli.engine.task.task import load_task

    found = [load_task(directory / "tasks" / task) for task in tasks]
    value = {
        "directory": str(directory),
        "tasks": [summary(task, directory / "tasks" / task.name) for task in found],
    }
    out.result(value, lambda console: show(console, value))


def lay_out(directory: Path) -> list[str]:
    """Fill the folder: model, images and recast.yaml; return the names of the tasks.

    Raises:
        RecastError: The folder has other things in it, or its parent does not exist.
    """
    from recast_cli.demo import MODEL_FOLDER
    from recast_cli.demo.draw import TASKS, draw_task

    if not directory.resolve().parent.is_dir():
        raise RecastError(f"The folder {directory.resolve().parent} does not exist", "Create it first.")
    if directory.exists() and not directory.is_dir():
        raise RecastError(f"{directory} is a file", "Give another --directory.")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / MODEL).is_dir():
        raise RecastError(f"{directory} is not empty and no demo", "Give another --directory.")
    shutil.copytree(MODEL_FOLDER, directory / MODEL, dirs_exist_ok=True)
    tasks = list(TASKS)
    for task in tasks:
        draw_task(task, directory / "data" / task)
    if not (directory / "recast.yaml").exists():
        config = {"base": "base.safetensors", "tasks": {task: dict(RECIPE) for task in tasks}}
        (directory / "recast.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return tasks


def run(context: typer.Context, command: str, quiet: bool, debug: bool) -> None:
    """Run one command of ours in this process; what it raises or exits with goes on to the caller."""
    recast: Any = context.find_root().command  # whoever called `demo` has the other commands, too
    passed = [flag for flag, given in (("--quiet", quiet), ("--debug", debug)) if given]
    arguments = shlex.split(command)[1:] + passed
    try:
        recast(arguments)
    except SystemExit as stop:
        if stop.code:
            raise


@contextlib.contextmanager
def working_in(directory: Path) -> Iterator[None]:
    """The working folder for a while."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def show(console: Console, value: dict[str, Any]) -> None:
    """What came of it, for people."""
    console.print()
    table = columns("task", "coefficients", "linear probe", "adapted")
    for task in value["tasks"]:
        scores = (percent(task["linear_probe_test_top1"]), percent(task["test_top1"]))
        table.add_row(task["task"], str(task["coefficients"]), *scores)
    console.print(table)
    console.print()
    console.print(
        Text(
            "This small model was pretrained with mixing in mind, so it gains more than a usual checkpoint does: "
            "docs/evidence/summary.md has those."
        )
    )
    console.print(Text(f"All of it lies in {value['directory']}: go there and try the commands yourself."))
