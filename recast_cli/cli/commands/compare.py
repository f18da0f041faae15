"""`recast compare`: a YAML file of sources, tasks and methods -> runs, a table and a plot."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from recast_cli.cli.options import CacheSize, Debug, Device, Json, Quiet
from recast_cli.cli.output import Output, columns
from recast_cli.cli.startup import prepare
from recast_cli.engine.compare.leaderboard import Row, leaderboard, legend, markdown, remark, table_of
from recast_cli.engine.compare.runner import check_files, read_results
from recast_cli.engine.compare.runner import compare as do_runs
from recast_cli.engine.compare.spec import Plan, read_comparison
from recast_cli.engine.compare.sweep import Results, Run, expected, next_runs
from recast_cli.engine.errors import RecastError
from recast_cli.engine.storage.atomic import write_text
from recast_cli.engine.units import percent

TABLE, PLOT = "table.md", "plot.png"


def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML: sources, tasks, methods, seeds.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where results go.  [default: FILE without its suffix]"),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="Processes that work at a time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print which runs there are, and train nothing.")] = False,
    cache_size: CacheSize = None,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare RECAST with other methods on equal terms: one file in, a table and a plot out.

    Every method gets the same images, splits, epochs, linear probe to start from, and the same sweep of its learning
    rate on validation images; test is measured once, for the chosen rate. What is finished is kept: the same command
    goes on where it was stopped, and after an edit of the file it does what the edit changed.

    \b
        recast compare methods.yaml
        recast compare methods.yaml --dry-run
        recast compare methods.yaml --jobs 4 -o results
    """
    out = Output(as_json, quiet)
    if jobs < 1:
        raise RecastError(f"--jobs {jobs} is below 1", "Give the number of processes.")
    plan = read_comparison(file)
    folder = output if output is not None else file.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise RecastError(f"{folder} is a file", "Give another folder with --output DIR.")
    if not folder.resolve().parent.is_dir():
        raise RecastError(f"The folder {folder.resolve().parent} does not exist", "Create it first.")
    results: Results = read_results(folder)
    if dry_run:
        value = planned(plan, folder, results)
        out.result(value, lambda console: show_plan(console, value))
        return
    failed = 0
    if next_runs(plan, results):
        prepare(device)
        lines = dict(results)

        def on_run(run: Run, line: dict[str, Any] | None, trouble: str) -> None:
            what = describe(run)
            if line is None:
                out.warn(f"{what}: {trouble}")
                return
            lines[run.key] = line
            write_text(folder / TABLE, markdown(plan, leaderboard(plan, lines)))  # to be read while others are trained
            if line.get("error"):
                out.note(f"{what}: cannot run: {line['error']}")
            else:
                test = "" if line["test_top1"] is None else f"  test {percent(line['test_top1'])}"
                out.note(f"{what}  val {percent(line['val_top1'])}{test}  {line['seconds']:.1f} s")

        results, failed = do_runs(plan, folder, jobs, device, cache_size, on_run=on_run)
    rows = leaderboard(plan, results)
    if all(row.error for row in rows):
        raise RecastError(f"{file}: nothing of it can run: {rows[0].error}", "Mend the file.")
    from recast_cli.engine.compare.figure import plot_leaderboard

    folder.mkdir(exist_ok=True)
    write_text(folder / TABLE, markdown(plan, rows))
    plot_leaderboard(rows, folder / PLOT)
    value = {
        "directory": str(folder),
        "standings": [asdict(row) for row in rows],
        "failed": failed,
        "files": [str(folder / name) for name in ("runs.jsonl", TABLE, PLOT)],
    }
    out.result(value, lambda console: show(console, plan, rows))
    if failed:
        out.error(f"{failed} runs failed. What was finished is kept; the same command tries them again.")
        raise typer.Exit(1)


def describe(run: Run) -> str:
    """A run in a few words."""
    rate = "" if run.lr is None else f"  lr {run.lr:.3g}"
    return f"{run.source}  {run.task}  {run.method}{rate}  seed {run.seed}"


def planned(plan: Plan, folder: Path, results: Results) -> dict[str, Any]:
    """The JSON of `--dry-run`."""
    check_files(plan, next_runs(plan, results))
    rows = [expected(plan, source, name, results) for source in plan.sources for name in plan.methods]
    return {
        "directory": str(folder),
        "runs": sum(row["runs"] for row in rows),
        "done": sum(row["done"] for row in rows),
        "methods": rows,
    }


def show_plan(console: Console, value: dict[str, Any]) -> None:
    """The same for people."""
    table = columns("source", "method", "learning rates", "runs", "done")
    for row in value["methods"]:
        rates = ", ".join(f"{rate:.3g}" for rate in row["rates"]) or "–"
        table.add_row(row["source"], row["method"], rates, str(row["runs"]), str(row["done"]))
    console.print(table)
    console.print()
    console.print(Text(f"{value['runs']} runs, {value['done']} done; a sweep may grow where an end of it is the best."))


def show(console: Console, plan: Plan, rows: list[Row]) -> None:
    """The table for people; what a narrow terminal has no room for stands in table.md."""
    for source in plan.sources:
        own = [row for row in rows if row.source == source]
        names, texts = table_of(plan, own)
        places = fitting(names, texts, list(plan.tasks), console.width)
        table = columns(*(names[place].replace(" ", "\n") for place in places))
        for row, each in zip(own, texts, strict=True):
            table.add_row(*(Text(each[place], style="bold" if row.best else "") for place in places))
        console.print(Text(source, style="bold"))
        console.print(table)
        for row in own:
            if said := remark(row):
                console.print(Text(f"{row.method} {said}"))
        if hidden := [name for place, name in enumerate(names) if place not in places]:
            console.print(Text(f"Only in {TABLE}: {', '.join(hidden)}."))
        console.print()
    console.print(Text(legend(plan)))


def fitting(names: list[str], rows: list[list[str]], tasks: list[str], width: int) -> list[int]:
    """Places of the columns that fit side by side; the least telling ones go first."""
    wide = [max(*(len(row[place]) for row in rows), max(map(len, name.split()))) for place, name in enumerate(names)]
    kept = list(range(len(names)))
    for name in ("peak MB", "file bytes", "seconds", "degrees of freedom", *tasks[::-1], "learning rate"):
        if sum(wide[place] + 2 for place in kept) <= width:
            break
        kept.remove(names.index(name))
    return kept
