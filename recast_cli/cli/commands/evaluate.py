"""`recast eval`: measure tasks, or the source's own classifier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from recast_cli.cli.options import BaseFile, CacheSize, Debug, Device, Json, OnBadImage, Quiet
from recast_cli.cli.output import Output, columns, left_out
from recast_cli.cli.startup import prepare
from recast_cli.engine.errors import RecastError
from recast_cli.engine.task.folder import read_record
from recast_cli.engine.units import percent
from recast_cli.workspace import find_workspace

if TYPE_CHECKING:
    from recast_cli.engine.measure.evaluate import Evaluation


def evaluate(
    task: Annotated[list[str] | None, typer.Option("--task", "-t", metavar="NAME", help="Repeatable.")] = None,
    all_tasks: Annotated[bool, typer.Option("--all", help="Every task here.")] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Measure on these images, not on the recorded test split.")
    ] = None,
    fail_under: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Exit with 1 where any top-1 is below, e.g. 0.9.")
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Without a task: YAML of folder: index, or folder names in class order."),
    ] = None,
    base: BaseFile = None,
    on_bad_image: OnBadImage = None,
    cache_size: CacheSize = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge tasks into plain weights and measure them.

    Without a task it is the source's own classifier, on folders named by class index or wnid.

    \b
        recast eval --task flowers --fail-under 0.9
        recast eval --all --json
        recast eval --task flowers --data new-images
        recast eval --base base.safetensors --data imagenet-val
    """
    out = Output(as_json, quiet)
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise RecastError(f"--fail-under {fail_under} is not between 0 and 1", "Give a share: 0.9 stands for 90 %.")
    if class_map is not None and (task or all_tasks):
        raise RecastError("--class-map is for the source's own classifier", "Leave it out with a task.")
    workspace = find_workspace()
    names = list(dict.fromkeys([*(task or []), *(workspace.task_names() if all_tasks else [])]))
    if all_tasks and not names:
        raise RecastError(f"No tasks in {workspace.root / 'tasks'}", "Make one with `recast adapt --task NAME`.")
    if not names and data is None:
        raise RecastError("Nothing to measure", "Give --task NAME, --all, or --base FILE with --data DIR.")
    unfinished = workspace.unfinished_names() if all_tasks else []
    folders = {name: workspace.task_folder(name) for name in names}
    labels = read_class_map(class_map) if class_map else None
    base_ids = [read_record(folder)["base_id"] for folder in folders.values()]
    base_file = workspace.base_file(base, base_ids[0] if base_ids else None)
    prepare(device)
    from recast_cli.engine.base.file import load_base
    from recast_cli.engine.measure.evaluate import evaluate as measure
    from recast_cli.engine.measure.evaluate import evaluate_source
    from recast_cli.engine.model.switcher import Switcher
    from recast_cli.engine.task.task import load_task

    loaded = load_base(base_file)
    tasks = [load_task(folder, loaded) for folder in folders.values()]
    switcher = Switcher(loaded, device) if len(tasks) > 1 else None
    with out.progress() as progress:
        options: dict[str, Any] = {
            "device": device,
            "on_bad_image": on_bad_image or "skip",
            "cache_size": cache_size,
            "progress": progress,
        }
        found = [
            measure(loaded, each, workspace.recorded_data(each.record), data, switcher=switcher, **options)
            for each in tasks
        ]
        if not names and data is not None:
            found = [evaluate_source(loaded, data, labels, **options)]
    for each in found:
        if each.skipped:
            out.warn(left_out(each.skipped))
    if unfinished:
        out.warn(f"Not finished, and not measured: {', '.join(unfinished)}.")
    value = summary(loaded.base_id, found, fail_under, unfinished)
    out.result(value, lambda console: show(console, value))
    if value["passed"] is False:
        below = [each.task or "source" for each in found if each.top1 < (fail_under or 0)]
        if below:
            out.error(f"Below --fail-under {fail_under}: {', '.join(below)}.")
        else:
            out.error(f"Not measured with --fail-under {fail_under}: {', '.join(unfinished)}.")
        raise typer.Exit(1)


def read_class_map(path: Path) -> dict[str, int]:
    """Folder name -> class index, from YAML or JSON (a mapping or a list), or from one name a line."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise RecastError(f"{path} is no text", "Check --class-map.") from None
    except OSError as error:
        raise RecastError(f"{path}: {error.strerror}", "Check --class-map.") from None
    except yaml.YAMLError:
        content = None
    if isinstance(content, str):
        content = text.split()
    if isinstance(content, list):
        return {str(name): index for index, name in enumerate(content)}
    if not isinstance(content, dict) or not all(type(index) is int for index in content.values()):
        raise RecastError(f"{path} is not a class map", "Write `folder: index` lines, or one folder name a line.")
    return {str(name): index for name, index in content.items()}


def summary(base_id: str, found: list[Evaluation], fail_under: float | None, unfinished: list[str]) -> dict[str, Any]:
    """The JSON of `recast eval`; with --fail-under a task that is not finished has not passed."""
    tasks = [{**vars(each), "skipped_images": len(each.skipped)} for each in found]
    return {
        "base_id": base_id,
        "tasks": [{key: value for key, value in task.items() if key != "skipped"} for task in tasks],
        "mean_top1": sum(each.top1 for each in found) / len(found),
        "unfinished": unfinished,
        "passed": None if fail_under is None else not unfinished and all(each.top1 >= fail_under for each in found),
    }


def show(console: Console, value: dict[str, Any]) -> None:
    """The same for people."""
    table = columns("task", "split", "images", "top-1", "top-5")
    for each in value["tasks"]:
        name = each["task"] or "source"
        table.add_row(name, each["split"], str(each["images"]), percent(each["top1"]), percent(each["top5"]))
    if len(value["tasks"]) > 1:
        table.add_row("mean", "", "", percent(value["mean_top1"]), "")
    console.print(table)
    for each in value["tasks"]:
        imperfect = [(name, top1) for name, top1 in each["per_class"].items() if top1 is not None and top1 < 1]
        weakest = sorted(imperfect, key=lambda item: item[1])[: 5 if len(value["tasks"]) == 1 else 0]
        if weakest:
            console.print()
            console.print("weakest classes: " + ", ".join(f"{name} {percent(top1)}" for name, top1 in weakest))
        if weakest and each["confused"]:
            pairs = ", ".join(f"{p['true']} taken for {p['predicted']} ({p['images']})" for p in each["confused"])
            console.print(f"most confused: {pairs}")
