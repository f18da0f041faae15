"""What `recast mimic` says of the base that it made, and of the compression that it plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from recast_cli.cli.output import columns, show_facts
from recast_cli.engine.base.header import stored_as
from recast_cli.engine.units import percent, show_bytes

if TYPE_CHECKING:
    from recast_cli.engine.base.base import Base
    from recast_cli.engine.layout.layout import Layout
    from recast_cli.engine.mimic.compress.plan import Compression
    from recast_cli.engine.source.source import Source


def summary(source: Source, base: Base, seconds: float) -> dict[str, Any]:
    """The JSON of `recast mimic`."""
    from recast_cli.engine.base.base import parameters
    from recast_cli.engine.storage.tensors import specs

    assert base.path is not None
    layout, errors = base.layout, base.errors.values()
    value: dict[str, Any] = {
        "base": str(base.path),
        "base_id": base.base_id,
        "architecture": base.architecture.name if base.architecture else None,
        "layout": layout.name,
        "modules": len(layout.modules),
        "banks": len(layout.banks),
        "groups": layout.groups,
        "templates": layout.templates,
        "sets": layout.sets,
        "coefficients": layout.coefficients,
        "degrees_of_freedom": layout.degrees_of_freedom,
        "max_relative_error": max(error["relative_error"] for error in errors),
        "min_cosine": min(error["cosine"] for error in errors),
        "savings": layout.savings,
        "source_parameters": parameters(specs(source.tensors)),
        "base_parameters": parameters(base.specs),
        "solver": base.solver["name"],
        "bytes": base.path.stat().st_size,
        "seconds": round(seconds, 3),
    }
    if "healed" in base.solver:
        value["healed"] = base.solver["healed"]
    if base.codes:
        value["compression"] = base.compression
    if base.verified:
        value["verify"] = base.verified
    return value


def show(console: Console, base: Base, value: dict[str, Any]) -> None:
    """The same for people."""
    layout = base.layout
    roles = sorted({bank.role for bank in layout.banks})
    exact = value["max_relative_error"] == 0
    fit = "exact" if exact else f"max {value['max_relative_error']:.2g}, min cosine {value['min_cosine']:.4f}"
    rows = [
        ("base", f"{value['base']}  ({show_bytes(value['bytes'])}, id {value['base_id'][:8]})"),
        ("architecture", value["architecture"] or "unknown: can be inspected and exported, not adapted"),
        (
            "layout",
            f"{layout.name}: {value['modules']} modules in {value['banks']} banks of {', '.join(roles[:3])}"
            + (f" and {len(roles) - 3} more roles" if len(roles) > 3 else "")
            + (", each cut into its mean over the window and the rest" if layout.means else ""),
        ),
        ("groups x templates x sets", f"G={value['groups']}, n={value['templates']}, K={value['sets']}"),
        ("coefficients", f"{value['coefficients']}  (degrees of freedom {value['degrees_of_freedom']})"),
        ("relative error", fit),
        ("parameters", f"{value['base_parameters']:,} (source {value['source_parameters']:,})"),
        ("seconds", f"{value['seconds']:.1f}"),
    ]
    if base.codes:
        before = value["compression"]["source_bytes"]
        smaller = f"{before / value['bytes']:.2f}x smaller than {show_bytes(before)}"
        rows.insert(1, ("size", f"{smaller}: {stored_as(base.compression)}"))
    if "healed" in value:
        found = value["healed"]
        steps = " -> ".join(f"{found['divergence'][step]:.3g}" for step in ("mimicked", "layers", "healed"))
        rows.append(("healed", f"{found['images']} images, divergence from the source {steps}"))
    if "verify" in value:
        found = value["verify"]
        alike = f"{found['images']} images, top-1 agreement {percent(found['agreement'])}"
        lowest = min(found["feature_cosine"].values())
        rows.append(("verified", f"{alike}, lowest feature cosine {lowest:.4f}"))
    show_facts(console, rows)
    if base.codes and "verify" in value:
        console.print()
        show_facts(console, [(name, f"{cosine:.4f}") for name, cosine in value["verify"]["feature_cosine"].items()])
    # a healed base is not meant to have the source's weights
    if not exact and "healed" not in value and not (base.codes and all(bank.exact for bank in layout.banks)):
        worst = sorted(base.errors.items(), key=lambda item: -item[1]["relative_error"])
        console.print()
        rows = [(name, f"relative error {e['relative_error']:.4f}  cosine {e['cosine']:.4f}") for name, e in worst]
        show_facts(console, rows)


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
