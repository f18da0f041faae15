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
    from recast_cli.engine.compress.plan import Compression
    from recast_cli.engine.layout import Layout
    from recast_cli.engine.solve import SolverOptions
    from recast_cli.engine.source import Source


def choose_codes(
    source: Source, layout: Layout, wanted: str | None, bits: int | None, group: int | None, options: SolverOptions
) -> Compression:
    """The plan that `--size`, `--bits` and `--group-size` ask for. Raises RecastError as `plan_codes` does."""
    from recast_cli.engine.compress.plan import plan_codes, source_bytes

    size = None if wanted is None else wanted_bytes(wanted, source_bytes(source))
    return plan_codes(source, layout, size=size, bits=bits, group=group, options=options)


def wanted_bytes(text: str, source_bytes: int) -> int:
    """The bytes that `--size` means: a size, or `4x`: the source's, so many times smaller.

    Raises:
        RecastError: Neither, or not above 0.
    """
    times = re.fullmatch(r"([0-9]*\.?[0-9]+) *x", text.strip().lower())
    if times and float(times[1]) > 0:
        return int(source_bytes / float(times[1]))
    try:
        found = 0 if times else parse_size(text)
    except RecastError:
        found = 0
    if found < 1:
        raise RecastError(f"--size {text} is not a size", "Give e.g. 4x (of the source) or 6MB.")
    return found


def show_plan(console: Console, plan: Compression) -> None:
    """The plan as a table: what goes to how many bits."""
    table = columns("plan", "tensors", "values", "bits", "bytes")
    for row in plan.roles():
        table.add_row(
            row["role"], str(row["tensors"]), f"{row['values']:,}", widths(row["bits"]), readable(row["bytes"])
        )
    console.print(table)
    console.print(
        f"at most {readable(plan.nbytes)} of {readable(plan.source_bytes)}: {plan.ratio:.2f}x smaller", soft_wrap=True
    )


def widths(bits: dict[str, int]) -> str:
    """`4` where all tensors of a role have as many bits, else `3-5`."""
    found = sorted(int(each) for each in bits)
    return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def plan_json(plan: Compression) -> dict[str, Any]:
    """The plan for `--json`."""
    return {
        "bytes": plan.nbytes,
        "source_bytes": plan.source_bytes,
        "roles": plan.roles(),
    }
