"""How `recast mimic` shows a plan of compression."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from recast_cli.cli.output import columns
from recast_cli.engine.units import show_bytes

if TYPE_CHECKING:
    from recast_cli.engine.layout.layout import Layout
    from recast_cli.engine.mimic.compress.plan import Compression


def show_plan(console: Console, plan: Compression, layout: Layout) -> None:
    """The plan as a table: what goes to how many bits (scales and all), and what is shared."""
    table = columns("plan", "tensors", "values", "bits", "bytes")
    for row in plan.roles():
        table.add_row(
            row["role"],
            str(row["tensors"]),
            f"{row['values']:,}",
            f"{8 * row['bytes'] / row['values']:.2f}",
            show_bytes(row["bytes"]),
        )
    console.print(table)
    shared = [bank for bank in layout.banks if not bank.exact]
    if shared:
        modules, templates = sum(len(bank.modules) for bank in shared), sum(bank.templates for bank in shared)
        console.print(f"shared: {modules} modules are mixtures of {templates} templates", soft_wrap=True)
    console.print(
        f"at most {show_bytes(plan.nbytes)} of {show_bytes(plan.source_bytes)}: {plan.ratio:.2f}x smaller",
        soft_wrap=True,
    )
