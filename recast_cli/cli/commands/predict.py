"""`recast predict`: class and probability of single images."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recast_cli.cli.options import BaseFile, Debug, Device, Json, Quiet
from recast_cli.cli.output import Output, columns
from recast_cli.cli.startup import prepare
from recast_cli.engine.errors import RecastError
from recast_cli.engine.task.folder import read_record
from recast_cli.engine.units import percent
from recast_cli.workspace import find_workspace


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    task: Annotated[str, typer.Option("--task", "-t", metavar="NAME", help="Name of the task.")],
    base: BaseFile = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print class and probability of each image.

    \b
        recast predict --task flowers rose.jpg tulip.png
        recast predict --task flowers --json *.jpg
    """
    out = Output(as_json, quiet)
    workspace = find_workspace()
    folder = workspace.task_folder(task)
    base_file = workspace.base_file(base, read_record(folder)["base_id"])
    prepare(device)
    from recast_cli.engine.base.file import load_base
    from recast_cli.engine.measure.evaluate import predict as guess
    from recast_cli.engine.task.task import load_task

    loaded = load_base(base_file)
    learned = load_task(folder, loaded)
    problems: list[RecastError] = []
    with out.progress() as progress:
        guesses = guess(loaded, learned, images, device=device, on_problem=problems.append, progress=progress)
    value = {"predictions": [{"image": g.image, "class": g.label, "probability": g.probability} for g in guesses]}

    def show(console: Console) -> None:
        table = columns("image", "class", "probability")
        for each in guesses:
            table.add_row(each.image, each.label, percent(each.probability))
        console.print(table)

    if guesses:
        out.result(value, show)
    for problem in problems:
        out.error(problem)
    if problems:
        raise typer.Exit(2)
