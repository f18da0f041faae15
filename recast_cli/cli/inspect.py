"""`recast inspect`: what is inside a base, a task, or any safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recast_cli.cli.compression import stored_as
from recast_cli.cli.look import Look, look, look_at_task
from recast_cli.cli.options import BaseFile, Debug, Json, Quiet
from recast_cli.cli.output import Output, columns, show_facts, size
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
    looks = [look(item, workspace, base) for item in items]
    vectors = [each.vector for each in looks if each.vector is not None]
    matrix = None
    if len(looks) > 1 and len(vectors) == len(looks):
        if len({len(vector) for vector in vectors}) > 1:
            raise RecastError("These tasks belong to bases of different layouts", "Inspect them one by one.")
        from recast_cli.engine.measure.diagnose import similarity

        matrix = similarity(vectors)
    if plot is not None:
        draw(looks, matrix, plot, workspace)
        out.note(f"wrote {plot}")
    value = looks[0].value if len(looks) == 1 else {"items": [each.value for each in looks], "similarity": matrix}

    def show(console: Console) -> None:
        for place, each in enumerate(looks):
            if place:
                console.print()
            show_one(console, each.value)
        if matrix is not None:
            console.print()
            table = columns("similarity", *(str(each.value["task"]) for each in looks))
            for each, row in zip(looks, matrix, strict=True):
                table.add_row(str(each.value["task"]), *(number(entry) for entry in row))
            console.print(table)

    out.result(value, show)


def draw(looks: list[Look], matrix: Any, path: Path, workspace: Workspace) -> None:
    """The picture of one base, or of tasks; of one base as HTML, the report."""
    from recast_cli.engine.report.figures import plot_base, plot_tasks

    first = looks[0]
    if len(looks) == 1 and first.base and first.banks is not None and path.suffix.lower() == ".html":
        from recast_cli.engine.report.base_page import write_report

        return write_report(first.base, first.banks, first.roles or [], tasks_of(first.base, workspace), path)
    if len(looks) == 1 and first.base is not None and first.banks is not None:
        return plot_base(first.base, first.banks, path, first.roles or [])
    if all(each.changes is not None for each in looks):
        return plot_tasks([(str(each.value["task"]), each.changes or []) for each in looks], matrix, path)
    if any(each.value["kind"] == "task" and each.changes is None for each in looks):
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
            seen = look_at_task(folder, workspace, base.path)
        except RecastError as error:
            Output().warn(f"left out the task {name}: {error}")
            continue
        bytes = sum((folder / file).stat().st_size for file in files_of(record) if file != RECORD)
        found.append(Learned(record, seen.vector or [], seen.changes or [], bytes))
    return found


def number(value: float | None, digits: int = 3) -> str:
    """A number, or `-` where it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def show_one(console: Console, value: dict[str, Any]) -> None:
    """One thing for people."""
    {"base": show_base, "task": show_task, "safetensors": show_file}[value["kind"]](console, value)


def show_base(console: Console, value: dict[str, Any]) -> None:
    """A base for people: facts, then a line a bank."""
    show_facts(
        console,
        [
            ("base", f"{value['file']}  ({size(value['bytes'])}, id {value['base_id'][:8]})"),
            ("source", f"{value['source']}  ({value['architecture'] or 'architecture unknown'})"),
            (
                "layout",
                f"{value['layout']}, K={value['sets']}, {value['modules']} modules, solver {value['solver']['name']}",
            ),
            ("coefficients", f"{value['coefficients']}  (degrees of freedom {value['degrees_of_freedom']})"),
            (
                "parameters",
                f"{value['parameters']:,} (source {value['source_parameters']:,}, savings S = {value['savings']:,})",
            ),
            *([("stored", stored_as(value["compression"]))] if "compression" in value else []),
        ],
    )
    console.print()
    rows = [bank_row(bank) for bank in value["banks"]]
    names = ("bank", "layers", "diversity", "entropy", "error", "similarity")
    told = [place for place in range(len(names)) if any(row[place] != "-" for row in rows)]
    table = columns(*(names[place] for place in told))
    for row in rows:
        table.add_row(*(row[place] for place in told))
    console.print(table)
    if any(len(role["banks"]) > 1 for role in value["roles"]):
        console.print()
        table = columns("templates of all banks", "", "diversity", "similarity")
        for role in value["roles"]:
            mean = number(mean_similarity(role["similarity"]))
            table.add_row(role["role"], str(role["templates"]), number(role["frobenius"], 2), mean)
        console.print(table)


def bank_row(bank: dict[str, Any]) -> list[str]:
    """A bank in words."""
    return [
        bank["name"],
        str(len(bank["modules"])),
        number(bank["frobenius"], 2),
        number(bank["entropy"], 2),
        f"{bank['max_relative_error']:.2g}",
        number(mean_similarity(bank["coefficient_similarity"])),
    ]


def mean_similarity(matrix: list[list[float | None]] | None) -> float | None:
    """The mean of a symmetric matrix below its diagonal, without what is undefined."""
    pairs = [value for place, row in enumerate(matrix or ()) for value in row[:place] if value is not None]
    return sum(pairs) / len(pairs) if pairs else None


def show_task(console: Console, value: dict[str, Any]) -> None:
    """A task for people: facts, then a line a module."""
    metrics = value["metrics"]
    show_facts(
        console,
        [
            ("task", f"{value['task']}  (base {value['base_id'][:8]})"),
            ("coefficients", str(value["coefficients"])),
            *([("adapter", describe_adapter(value["adapter"]))] if value["adapter"] else []),
            ("head", f"{value['head_parameters']:,} parameters, {len(value['classes'])} classes"),
            (
                "test top-1",
                f"{100 * metrics['test_top1']:.1f} %  (linear probe {100 * metrics['linear_probe_test_top1']:.1f} %)",
            ),
        ],
    )
    console.print()
    if value["banks"] is None:
        console.print("Its base is not here; give it with --base FILE to see the coefficients by module.")
        return
    console.print("Coefficients, averaged over the sets:")
    table = columns("module", "task", "base", "moved")
    for module in (module for bank in value["banks"] for module in bank["modules"]):
        sets = [module["coefficients"], module["base"]]
        means = [" ".join(f"{sum(column) / len(rows):+.3f}" for column in zip(*rows, strict=True)) for rows in sets]
        table.add_row(module["module"], *means, number(module["moved"]))
    console.print(table)


def describe_adapter(adapter: dict[str, Any]) -> str:
    """`melo, rank 1, seed 0: 9,216 numbers`."""
    options = (f"{name} {value}" for name, value in adapter["options"].items())
    return f"{', '.join([adapter['name'], *options])}: {adapter['floats']:,} numbers"


def show_file(console: Console, value: dict[str, Any]) -> None:
    """Any safetensors file for people: a line a tensor."""
    where = f" in {value['shards']} shards" if value["shards"] > 1 else ""
    inside = f"{size(value['bytes'])}, {len(value['tensors'])} tensors{where}"
    show_facts(console, [("file", f"{value['file']}  ({inside})")])
    for name, text in value["metadata"].items():
        show_facts(console, [(name, text if len(text) < 200 else text[:199] + "…")])
    console.print()
    table = columns("tensor", "shape", "dtype")
    for tensor in value["tensors"]:
        table.add_row(tensor["name"], " x ".join(map(str, tensor["shape"])) or "scalar", tensor["dtype"])
    console.print(table)
