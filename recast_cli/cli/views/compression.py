"""How `recast mimic` reads a size, and how it shows a plan of compression."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Console

from recast_cli.cli.options import parse_size
from recast_cli.cli.output import columns
from recast_cli.cli.output import size as readable
from recast_cli.engine.errors import RecastError

if TYPE_CHECKING:
    from recast_cli.engine.layout.layout import Layout
    from recast_cli.engine.mimic.compress.plan import Compression
    from recast_cli.engine.source.source import Source


def wanted_bytes(text: str | None, source: Source) -> int | None:
    """The bytes that `--size` means: a size, or `4x`: the source's tensors, so many times smaller.

    Raises:
        RecastError: Neither, or not above 0.
    """
    if text is None:
        return None
    from recast_cli.engine.mimic.compress.plan import source_bytes

    times = re.fullmatch(r"([0-9]*\.?[0-9]+) *x", text.strip().lower())
    if times and float(times[1]) > 0:
        return int(source_bytes(source) / float(times[1]))
    try:
        found = 0 if times else parse_size(text)
    except RecastError:
        found = 0
    if found < 1:
        raise RecastError(f"--size {text} is not a size", "Give e.g. 4x (of the source) or 6MB.")
    if found < 1000 and text.strip().replace(".", "", 1).isdigit():
        raise RecastError(f"--size {text} has no unit", f"Write {text.strip()}x or {text.strip()}MB.")
    return found


def stored_as(compression: dict[str, Any]) -> str:
    """How a compressed base is stored, in words."""
    if not compression["rounded"]:
        return "float16"
    calibrated = compression["calibrated"]
    how = (
        f"calibrated on {calibrated.get('images', calibrated.get('pictures'))} images"
        if calibrated
        else "rounded to the nearest"
    )
    return f"{compression['bits']:.2f} bits a weight, {how}"


def show_plan(console: Console, plan: Compression, layout: Layout) -> None:
    """The plan as a table: what goes to how many bits (scales and all), and what is shared."""
    table = columns("plan", "tensors", "values", "bits", "bytes")
    for row in plan.roles():
        table.add_row(
            row["role"],
            str(row["tensors"]),
            f"{row['values']:,}",
            f"{8 * row['bytes'] / row['values']:.2f}",
            readable(row["bytes"]),
        )
    console.print(table)
    shared = [bank for bank in layout.banks if not bank.exact]
    if shared:
        modules, templates = sum(len(bank.modules) for bank in shared), sum(bank.templates for bank in shared)
        console.print(f"shared: {modules} modules are mixtures of {templates} templates", soft_wrap=True)
    console.print(
        f"at most {readable(plan.nbytes)} of {readable(plan.source_bytes)}: {plan.ratio:.2f}x smaller", soft_wrap=True
    )
