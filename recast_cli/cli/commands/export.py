"""`recast export`: merged networks for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recast_cli.cli.options import Debug, Json, Quiet
from recast_cli.cli.output import Output, show_facts
from recast_cli.cli.startup import import_torch
from recast_cli.engine.errors import RecastError
from recast_cli.engine.task.folder import files_of, read_record
from recast_cli.engine.units import show_bytes
from recast_cli.workspace import find_workspace

if TYPE_CHECKING:
    from recast_cli.engine.base.base import Base
    from recast_cli.engine.export.export import Exported


def export(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The base file.")],
    format: Annotated[str, typer.Option("--format", metavar="safetensors|timm|onnx", help="What to write.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="The file; of timm, or of several tasks, the folder.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", metavar="NAME", help="Repeatable.  [default: the source's own classifier]"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a base or its tasks for other programs: plain weights, nothing of RECAST in them.

    \b
        recast export base.safetensors --task flowers --format timm -o flowers
        recast export base.safetensors --task flowers --format onnx -o flowers.onnx
        recast export base.safetensors --task flowers --task birds --format onnx -o models
        recast export base.safetensors --format safetensors -o source.safetensors
    """
    out = Output(as_json, quiet)
    workspace = find_workspace()
    names = list(dict.fromkeys(task or []))
    folders = [workspace.task_folder(name) for name in names]
    parts = [folder / file for folder in folders for file in files_of(read_record(folder))]
    if output.is_file() and any(file.exists() and output.samefile(file) for file in (base, *parts)):
        raise RecastError(f"{output} is what would be exported", "Give the export another name.")
    import_torch()
    from recast_cli.engine.base.file import load_base
    from recast_cli.engine.export.export import check_format, check_target, export_all
    from recast_cli.engine.export.export import export as write
    from recast_cli.engine.storage.atomic import check_new_folder
    from recast_cli.engine.task.task import load_task

    several = len(names) > 1
    if several:
        check_format(format)
        check_new_folder(output)
    else:
        check_target(output, format)
    loaded = load_base(base)
    tasks = [load_task(folder, loaded) for folder in folders]
    if several:
        out.note(f"note: tasks differ in all their weights, so {output} gets a copy of the network for each of them.")
        value = {"items": [summary(loaded, each) for each in export_all(loaded, tasks, format, output)]}
    else:
        value = summary(loaded, write(loaded, output, format, tasks[0] if tasks else None))
    out.result(value, lambda console: show(console, value))


def summary(base: Base, found: Exported) -> dict[str, Any]:
    """The JSON of one export."""
    return {
        "base_id": base.base_id,
        "task": found.task,
        "format": found.format,
        "files": [str(file) for file in found.files],
        "bytes": found.bytes,
        "max_logit_difference": found.max_logit_difference,
        "identical": found.identical,
        "opened": found.opened,
    }


def show(console: Console, value: dict[str, Any]) -> None:
    """The same for people."""
    for place, each in enumerate(value.get("items", [value])):
        if place:
            console.print()
        difference = each["max_logit_difference"]
        rows = [("task", each["task"] or "none: the source's own classifier")]
        if difference is None:
            rows = [("source", "every tensor under its own name")]
        rows.append(("files", f"{', '.join(each['files'])}  ({show_bytes(each['bytes'])})"))
        if each["identical"] is not None:
            words = "bit by bit the source's"
            rows.append(("tensors", words if each["identical"] else f"not {words}; see `recast inspect`"))
        if difference is not None:
            words = f"within {difference:.1g} of" if difference else "equal to"
            rows.append(("logits", f"{words} the merged network's"))
        show_facts(console, [*rows, ("open it", each["opened"])])
