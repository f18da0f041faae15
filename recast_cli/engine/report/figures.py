"""Plots of a base and of its tasks, after Figures 6, 9 and 10 of RECAST, as .png, .svg or one .html page.

Drawn on `Figure` objects, never through pyplot: no global state, no display. Equal input gives equal bytes with one
version of matplotlib. A value that is None is a gap in a curve, a grey cell in a heat map.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from recast_cli.engine.errors import RecastError
from recast_cli.engine.measure.diagnose import BankDiagnosis, Matrix, ModuleChange, RoleDiagnosis
from recast_cli.engine.report.heat_maps import (
    MOST_MAPS,
    WIDTH,
    Map,
    Series,
    choose_maps,
    draw_maps,
    map_sizes,
    role_maps,
    short,
)
from recast_cli.engine.report.html import document, table
from recast_cli.engine.storage.atomic import atomic, check_writable

if TYPE_CHECKING:
    from recast_cli.engine.base.base import Base

SUFFIXES = (".png", ".svg", ".html")
# Okabe and Ito's colours, told apart by colour-blind readers too; without yellow, which is faint on white
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"), tuple("os^Dv<>P")
# the user's matplotlibrc must not change what was laid out here; the backend is left alone, as nothing is shown
STYLE: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"} | {
    "svg.hashsalt": "recast",  # the ids inside an SVG are random without it
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.prop_cycle": cycler(color=COLOURS * 8) + cycler(marker=MARKERS * 7),  # 56 lines look different
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
Tasks = list[tuple[str, list[ModuleChange]]]
"""Name of each task and what it changed."""


def plot_base(base: Base, banks: list[BankDiagnosis], path: Path, roles: Sequence[RoleDiagnosis] = ()) -> None:
    """Curves over the groups, one line per role and shape, and the similarity of coefficients within each group.

    Where every group is a single layer the templates of each of the `roles` are compared instead.

    Raises:
        RecastError: `path` ends in none of SUFFIXES, or no file can be put there.
    """
    check_plot(path)
    with matplotlib.rc_context(STYLE):
        plan = base.layout
        title = f"{base.source}, layout {plan.name}: G = {plan.groups}, n = {plan.templates}, K = {plan.sets}"
        save(base_figure(base, banks, roles), title, [bank_table(base, banks)], path)


def kinds_of(base: Base) -> dict[str, str]:
    """Name of each bank -> its role and shape in words."""
    return {bank.name: f"{bank.role}  {'×'.join(map(str, bank.shape))}" for bank in base.layout.banks}


def bank_table(base: Base, banks: list[BankDiagnosis]) -> str:
    """A row a bank, in HTML."""
    kinds, rows = kinds_of(base), []
    columns = ("group", "kind", "layers", "distance", "entropy", "largest error", "similarity between layers")
    for bank in banks:
        numbers = map(number, (bank.frobenius, bank.entropy, bank.max_relative_error))
        rows.append([bank.name, kinds[bank.name], str(len(bank.modules)), *numbers, span(bank.coefficient_similarity)])
    return table("Groups", columns, rows)


def base_figure(base: Base, banks: list[BankDiagnosis], roles: Sequence[RoleDiagnosis]) -> Figure:
    """Curves and heat maps of a base, to be drawn and written under STYLE."""
    kinds = kinds_of(base)
    series: Series = {}
    for bank in banks:
        series.setdefault(kinds[bank.name], []).append(bank)
    found, width = choose_maps(series)
    heading = "Cosine similarity of coefficients between the layers of a group"
    if not found and roles:  # groups of one layer: their templates are what can be compared
        heading = "Cosine similarity of the templates of all groups"
        found, width = role_maps(roles)
    maps = found[:MOST_MAPS]
    notes = {
        f"+{len(found) - len(maps)} more groups whose similarity is not drawn.": len(found) > len(maps),
        "A group of one layer has no similarity between layers.": 0 < lonely(banks, "coefficient_similarity") < 1,
        "A group of one template has no distance between templates.": 0 < lonely(banks, "frobenius") < 1,
    }
    heights = [2.5 + legend_size(list(series))[1], map_sizes(maps, width)[1]]
    figure, parts = new_figure(heights, " ".join(note for note, wanted in notes.items() if wanted))
    draw_curves(parts[0], series)
    if maps:
        draw_maps(parts[1], maps, width, heading)
    return figure


def plot_tasks(tasks: Tasks, similarity: Matrix | None, path: Path) -> None:
    """How far each module's coefficients moved from the base in each task, and `similarity` between the tasks.

    Raises:
        RecastError: `path` ends in none of SUFFIXES, or no file can be put there.
    """
    check_plot(path)
    names = [name for name, _ in tasks]
    modules = list(dict.fromkeys(change.module for _, changes in tasks for change in changes))
    moved = [{change.module: change.moved for change in changes} for _, changes in tasks]
    rows = [[module, *(number(each.get(module)) for each in moved)] for module in modules]
    tables = [table("Distance of the coefficients from the base", ("module", *names), rows)]
    if similarity and len(tasks) > 1:
        cells = [[name, *map(number, row)] for name, row in zip(names, similarity, strict=True)]
        tables.append(table("Cosine similarity between the tasks", ("task", *names), cells))
    with matplotlib.rc_context(STYLE):
        title = ", ".join(names) if len(names) < 4 else f"{len(names)} tasks"
        save(tasks_figure(tasks, similarity), f"{title} beside the base", tables, path)


def tasks_figure(tasks: Tasks, similarity: Matrix | None) -> Figure:
    """What tasks moved and how alike they are, to be drawn and written under STYLE."""
    names = [name for name, _ in tasks]
    modules = list(dict.fromkeys(change.module for _, changes in tasks for change in changes))
    maps = [Map("", similarity, [short(name, 24) for name in names])] if similarity and len(tasks) > 1 else []
    rows_height = (0.16 + 0.03 * min(len(tasks), 12)) * len(modules)
    heights = [min(60.0, max(1.5, 0.9 + rows_height) + legend_size(names)[1]), map_sizes(maps, 1)[1]]
    figure, parts = new_figure(heights, "")
    draw_moves(parts[0], modules, tasks)
    if maps:
        draw_maps(parts[1], maps, 1, "Cosine similarity between the tasks")
    return figure


def check_plot(path: Path) -> None:
    """Raise RecastError unless a plot can be written to `path`; called before any work."""
    if path.suffix.lower() not in SUFFIXES:
        raise RecastError(f"{path} does not name a kind of plot", "Let it end in .png, .svg or .html.")
    check_writable(path)


def new_figure(heights: list[float], note: str) -> tuple[Figure, list[SubFigure]]:
    """A figure of parts below one another, `heights` inches each (0 for none), room for a title, and a note."""
    heights = [height for height in heights if height]
    figure = Figure(figsize=(WIDTH, sum(heights) + (0.6 if note else 0.4)), layout="constrained")
    if note:
        figure.supxlabel(note, fontsize=8, color="#666666")
    return figure, list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])


def draw_curves(part: SubFigure, series: Series) -> None:
    """One panel a quantity, one line a role and shape, over the numbers of the groups."""
    banks = [bank for each in series.values() for bank in each]
    panels = {"frobenius": "Mean distance of templates (Frobenius)", "entropy": "Entropy of singular values (nats)"}
    if any(bank.max_relative_error > 0 for bank in banks):
        panels["max_relative_error"] = "Largest relative error of a layer"
    panels = {field: title for field, title in panels.items() if lonely(banks, field) < 1 or field == "entropy"}
    for axis, (field, title) in zip(part.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for line in series.values():
            line = sorted(line, key=lambda bank: bank.group)
            values = [math.nan if (value := getattr(bank, field)) is None else value for bank in line]
            axis.plot([bank.group for bank in line], values, clip_on=False)
        axis.set(title=title, xlabel="group", xlim=(0.5, max(bank.group for bank in banks) + 0.5))
        axis.xaxis.set_major_locator(MaxNLocator(14, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        if field == "max_relative_error":
            axis.set_ylim(0, 1.08 * max(bank.max_relative_error for bank in banks))
        if all(getattr(bank, field) is None for bank in banks):
            axis.set_yticks([])
            axis.text(0.5, 0.5, "undefined in every group", transform=axis.transAxes, ha="center", color="#666666")
    draw_legend(part, axis, list(series))


def draw_moves(part: SubFigure, modules: list[str], tasks: Tasks) -> None:
    """A row a module, a dot a task; tasks stand a little above one another so that none hides another."""
    axis = part.subplots()
    places = {module: row for row, module in enumerate(modules)}
    for place, (_, changes) in enumerate(tasks):
        rows = [places[change.module] + 0.6 * ((place + 0.5) / len(tasks) - 0.5) for change in changes]
        moved = [change.moved for change in changes]
        if len(tasks) == 1:
            axis.hlines(rows, 0, moved, color=COLOURS[0])
        axis.plot(moved, rows, linestyle="none", clip_on=False)
    for row in range(1, len(modules), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=0, linewidth=0)
    step = max(1, math.ceil(len(modules) / 300))
    axis.set_yticks(range(0, len(modules), step), [short(module, 40) for module in modules[::step]], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set(ylim=(len(modules) - 0.5, -0.5), title="How far the coefficients moved from the base (Frobenius)")
    axis.set_xlim(0, 1.02 * max((change.moved for _, changes in tasks for change in changes), default=0.0) or 1.0)
    if len(tasks) > 1:
        draw_legend(part, axis, [name for name, _ in tasks])


def legend_size(names: Sequence[str]) -> tuple[int, float]:
    """How many names stand side by side below a panel, and how high they all are in inches."""
    fit = max(1, int(WIDTH / (0.6 + 0.065 * max(len(short(name, 48)) for name in names))))
    rows = math.ceil(len(names) / fit)
    return math.ceil(len(names) / rows), 0.19 * rows


def draw_legend(part: SubFigure, axis: Axes, names: list[str]) -> None:
    """The names of the lines of a panel, below it."""
    labels = [" " * name.startswith("_") + short(name, 48) for name in names]  # matplotlib leaves out _names
    part.legend(axis.get_lines(), labels, loc="outside lower center", ncols=legend_size(names)[0])


def lonely(banks: list[BankDiagnosis], field: str) -> float:
    """The share of banks in which a quantity is undefined."""
    return sum(getattr(bank, field) is None for bank in banks) / len(banks)


def number(value: float | None) -> str:
    """Four digits; a dash for None."""
    return "–" if value is None else f"{value:.4g}"


def span(matrix: Matrix | None) -> str:
    """Lowest and highest similarity of two different layers; a dash where there is none."""
    rows = matrix or []
    values = [value for i, row in enumerate(rows) for value in row[:i] if value is not None]
    return " to ".join(number(round(end, 2) + 0.0) for end in (min(values), max(values))) if values else "–"


def save(figure: Figure, title: str, tables: list[str], path: Path) -> None:
    """Write the plot in the format that the suffix names; the tables go into HTML only, below it."""
    kind = path.suffix.lower()[1:]
    if kind != "html":  # there the title is text of the page
        figure.suptitle(short(title, 100), fontsize=11)
    with atomic(path) as temporary:
        if kind == "html":
            title = short(title, 200)
            body = f"<header><h1>{html.escape(title)}</h1></header>\n{in_page(figure, title)}\n" + "\n".join(tables)
            temporary.write_text(document(title, body), encoding="utf-8")
        else:
            temporary.write_bytes(drawn(figure, kind))


def drawn(figure: Figure, kind: str) -> bytes:
    """A figure as png or svg, without anything of the day or the program in it."""
    stream = io.BytesIO()
    nothing = {"Software": None} if kind == "png" else dict.fromkeys(("Date", "Creator", "Type", "Format"))
    figure.savefig(stream, format=kind, dpi=150, metadata=nothing)
    return stream.getvalue()


def in_page(figure: Figure, label: str) -> str:
    """A figure as part of a page; narrow screens scroll it, as its letters would be too small."""
    svg = drawn(figure, "svg").decode().partition("<svg")[2].rstrip()
    return f'<div class="wide"><svg role="img" aria-label="{html.escape(label)}"{svg}</div>'
