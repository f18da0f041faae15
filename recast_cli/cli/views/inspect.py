"""What `recast inspect` prints for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from recast_cli.cli.output import columns, show_facts
from recast_cli.engine.base.header import stored_as
from recast_cli.engine.units import count_coefficients, percent, show_bytes


def number(value: float | None, digits: int = 3) -> str:
    """A number, or `-` where it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def show_base(console: Console, value: dict[str, Any]) -> None:
    """A base for people: facts, then a line a bank."""
    show_facts(
        console,
        [
            ("base", f"{value['file']}  ({show_bytes(value['bytes'])}, id {value['base_id'][:8]})"),
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
    rows = [
        [
            bank["name"],
            str(len(bank["modules"])),
            number(bank["frobenius"], 2),
            number(bank["entropy"], 2),
            f"{bank['max_relative_error']:.2g}",
            number(mean_similarity(bank["coefficient_similarity"])),
        ]
        for bank in value["banks"]
    ]
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
            ("learned", count_coefficients(value["coefficients"], len(value["places"] or ()))),
            *([("adapter", describe_adapter(value["adapter"]))] if value["adapter"] else []),
            ("head", f"{value['head_parameters']:,} parameters, {len(value['classes'])} classes"),
            (
                "test top-1",
                f"{percent(metrics['test_top1'])}  (linear probe {percent(metrics['linear_probe_test_top1'])})",
            ),
        ],
    )
    console.print()
    if value["places"] and value["base"]:
        console.print("Entries that the task chose, those that promised most first, and what it adds to them:")
        table = columns("vector", "entry", "added")
        for place in value["places"]:
            table.add_row(place["vector"], str(place["entry"]), f"{place['added']:+.4f}")
        console.print(table)
        console.print()
    if value["banks"] is None:
        if not value["base"]:
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
    inside = f"{show_bytes(value['bytes'])}, {len(value['tensors'])} tensors{where}"
    show_facts(console, [("file", f"{value['file']}  ({inside})")])
    for name, text in value["metadata"].items():
        show_facts(console, [(name, text if len(text) < 200 else text[:199] + "…")])
    console.print()
    table = columns("tensor", "shape", "dtype")
    for tensor in value["tensors"]:
        table.add_row(tensor["name"], " x ".join(map(str, tensor["shape"])) or "scalar", tensor["dtype"])
    console.print(table)


SHOW = {"base": show_base, "task": show_task, "safetensors": show_file}
"""Kind of what is inspected -> what prints it."""
