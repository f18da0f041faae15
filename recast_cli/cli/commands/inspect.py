"""`recast inspect`: what is inside a base, a task, or any safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recast_cli.cli.options import BaseFile, Debug, Json, Quiet
from recast_cli.cli.output import Output, columns
from recast_cli.cli.views.inspect import SHOW, number
from recast_cli.cli.views.subjects import Subject, open_subject, open_task
from recast_cli.engine.errors import RecastError
from recast_cli.engine.task.folder import RECORD, files_of, read_record
from recast_cli.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from recast_cli.engine.base.base import Base
    from recast_cli.engine.report.base_page import Learned


def inspect(
    items: Annotated[
        list[str], typer.Argument(metavar="FILE_OR_TASK...", help="A file, an index of shards, or the name of a task.")
    ],
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .html.")] = None,
    base: BaseFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look inside a base, tasks, or any safetensors file.

    A base: layout, savings, template diversity and entropy, coefficient similarity. A task: its coefficients
    beside the base's. Several tasks: how alike they are. A base drawn as .html is a page with its tasks here.

    \b
        recast inspect base.safetensors
        recast inspect flowers birds --plot tasks.png
        recast inspect base.safetensors --plot report.html --json
    """
    out = Output(as_json, quiet)
    workspace = find_workspace()
    subjects = [open_subject(item, workspace, base) for item in items]
    tasks = [(each.vector, each.places) for each in subjects if each.vector is not None]
    matrix = None
    if len(subjects) > 1 and len(tasks) == len(subjects):
        bases = {each.value["base_id"] for each in subjects if each.places}
        if len({len(vector) for vector, places in tasks if places is None}) > 1 or len(bases) > 1:
            raise RecastError("These tasks belong to bases of different layouts", "Inspect them one by one.")
        from recast_cli.engine.measure.diagnose import aligned, similarity

        matrix = similarity(aligned(tasks))
    if plot is not None:
        draw(subjects, matrix, plot, workspace)
        out.note(f"wrote {plot}")
    value = (
        subjects[0].value if len(subjects) == 1 else {"items": [each.value for each in subjects], "similarity": matrix}
    )

    def show(console: Console) -> None:
        for place, each in enumerate(subjects):
            if place:
                console.print()
            SHOW[each.value["kind"]](console, each.value)
        if matrix is not None:
            console.print()
            table = columns("similarity", *(str(each.value["task"]) for each in subjects))
            for each, row in zip(subjects, matrix, strict=True):
                table.add_row(str(each.value["task"]), *(number(entry) for entry in row))
            console.print(table)

    out.result(value, show)


def draw(subjects: list[Subject], matrix: Any, path: Path, workspace: Workspace) -> None:
    """The plot of one base, or of tasks; of one base as HTML, the report."""
    from recast_cli.engine.report.figures import plot_base, plot_tasks

    first = subjects[0]
    if len(subjects) == 1 and first.base is not None:
        if path.suffix.lower() == ".html":
            from recast_cli.engine.report.base_page import write_report

            return write_report(first.base, first.banks, first.roles, tasks_of(first.base, workspace), path)
        return plot_base(first.base, first.banks, path, first.roles)
    if all(each.changes is not None for each in subjects):
        return plot_tasks([(str(each.value["task"]), each.changes or []) for each in subjects], matrix, path)
    if any(each.value["kind"] == "task" and each.changes is None for each in subjects):
        raise RecastError("The base of these tasks is not here, so nothing can be drawn", "Give it with --base FILE.")
    raise RecastError("--plot draws one base, or tasks of one base", "Give only those.")


def tasks_of(base: Base, workspace: Workspace) -> list[Learned]:
    """The finished tasks of the workspace that belong to a base; one that cannot be read is left out with a warning."""
    from recast_cli.engine.report.base_page import Learned

    found = []
    for name in workspace.task_names():
        folder = workspace.task_folder(name)
        try:
            record = read_record(folder)
            if record["base_id"] != base.base_id:
                continue
            seen = open_task(folder, workspace, base.path)
        except RecastError as error:
            Output().warn(error.at(f"left out the task {name}"))
            continue
        bytes = sum((folder / file).stat().st_size for file in files_of(record) if file != RECORD)
        found.append(Learned(record, seen.vector or [], seen.places, seen.changes or [], bytes))
    return found
