"""Pictures of a base and of its tasks, after Figures 6, 9 and 10 of RECAST, as .png, .svg or one .html page.

Everything is drawn on `Figure` objects of its own, never through pyplot: no global figure, no display. Equal input
gives equal bytes with one version of matplotlib: no dates, fixed ids. Values that are None leave a gap or a grey cell.
"""

from __future__ import annotations

import html
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from recast_cli.engine.base import Base
from recast_cli.engine.diagnose import BankDiagnosis, Matrix, ModuleChange
from recast_cli.engine.errors import RecastError
from recast_cli.engine.files import atomic, check_writable

SUFFIXES = (".png", ".svg", ".html")
MOST_MAPS = 24
MOST_LABELS = 16  # along one edge of a heat map
WIDTH = 10.0  # inches
GREY = "#666666"
# Okabe and Ito's colours, told apart by colour-blind readers too; without yellow, which is faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "os^Dv<>P"
STYLE = {
    "svg.hashsalt": "recast",  # the ids inside an SVG are random without it
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "image.cmap": "RdBu_r",
}


@dataclass(frozen=True)
class Table:
    """Numbers below the picture in HTML: a caption, names of columns, and cells as text."""

    caption: str
    columns: tuple[str, ...]
    rows: list[list[str]]


class Map(NamedTuple):
    """One heat map: its title, its matrix, and the names along both edges."""

    title: str
    matrix: Matrix
    names: list[str]


def plot_base(base: Base, banks: list[BankDiagnosis], path: Path) -> None:
    """Curves over the groups, one per role and shape, and the coefficient similarity within each group.

    Args:
        base: Names roles and shapes.
        banks: What `diagnose` found in it.
        path: .png, .svg or .html.

    Raises:
        RecastError: Another suffix, or no file can be put there.
    """
    check_picture(path)
    kinds = {bank.name: f"{bank.role}  {'×'.join(map(str, bank.shape))}" for bank in base.layout.banks}
    series: dict[str, list[BankDiagnosis]] = {}
    for bank in banks:
        series.setdefault(kinds[bank.name], []).append(bank)
    maps, width = choose_maps(series)
    notes = []
    if len(maps) > MOST_MAPS:
        notes.append(f"+{len(maps) - MOST_MAPS} more groups with a similarity, not drawn.")
        maps = maps[:MOST_MAPS]
    if any(len(bank.modules) < 2 for bank in banks):
        notes.append("Groups of one layer have no similarity between layers.")
    if any(bank.frobenius is None for bank in banks):
        notes.append("Groups of one template have no distance between templates.")
    with clean_style():
        per_row = max(1, min(len(series), int(110 / max(len(short(kind, 60)) + 6 for kind in series))))
        heights = [2.5 + 0.2 * math.ceil(len(series) / per_row)]
        if maps:
            heights.append(grid_height(maps, width))
        figure, parts = new_figure(heights, 0.6 + 0.2 * len(notes))
        draw_curves(parts[0], series, per_row)
        if maps:
            draw_maps(parts[1], maps, width, "Cosine similarity of coefficients between the layers of a group")
        add_notes(figure, notes)
        layout = base.layout
        title = f"{base.source}, layout {layout.name}: G = {layout.groups}, n = {layout.templates}, K = {layout.sets}"
        save(figure, title, [base_table(banks, kinds)], path)


def plot_tasks(tasks: list[tuple[str, list[ModuleChange]]], similarity: Matrix | None, path: Path) -> None:
    """How far each module's coefficients moved from the base in each task, and how similar the tasks are.

    Args:
        tasks: Name and changes of one or more tasks of one base.
        similarity: Between the tasks, in their order; None draws none.
        path: .png, .svg or .html.

    Raises:
        RecastError: Another suffix, or no file can be put there.
    """
    check_picture(path)
    modules = list(dict.fromkeys(change.module for _, changes in tasks for change in changes))
    labels = [short(name, 32) for name, _ in tasks]
    maps = [Map("", similarity, labels)] if similarity and len(tasks) > 1 else []
    with clean_style():
        # tasks stand above one another within the row of a module
        row = min(0.5, 0.16 + 0.03 * len(tasks))
        per_row = max(1, min(len(tasks), int(110 / (max(map(len, labels)) + 6))))
        legend = 0.2 * math.ceil(len(tasks) / per_row) if len(tasks) > 1 else 0.0
        heights = [min(60.0, max(1.8, 0.9 + row * len(modules)) + legend)]
        if maps:
            heights.append(grid_height(maps, 1))
        figure, parts = new_figure(heights, 0.5)
        draw_moves(parts[0], modules, tasks, per_row)
        if maps:
            draw_maps(parts[1], maps, 1, "Cosine similarity between the tasks")
        title = f"{labels[0]} beside its base" if len(tasks) == 1 else f"{len(tasks)} tasks beside their base"
        save(figure, title, task_tables(modules, tasks, similarity if maps else None), path)


def check_picture(path: Path) -> None:
    """Raise RecastError unless a picture can be written to `path`; called before any work."""
    if path.suffix.lower() not in SUFFIXES:
        raise RecastError(
            f"{path}: '{path.suffix}' is no format for a picture", "Give a name that ends in .png, .svg or .html."
        )
    check_writable(path)


class clean_style(matplotlib.RcParams):
    """placeholder"""


def new_figure(heights: list[float], extra: float) -> tuple[Figure, list[SubFigure]]:
    """A figure of parts below one another, `heights` inches each, and `extra` inches for title and notes."""
    figure = Figure(figsize=(WIDTH, sum(heights) + extra), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    return figure, list(parts[:, 0])
