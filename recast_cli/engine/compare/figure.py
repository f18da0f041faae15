"""The plot of a comparison, after Figure 4 of RECAST: accuracy over the floats that are trained, one panel a source.

Methods that train nothing but the head have no place on a logarithmic axis: they are horizontal lines.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from recast_cli.engine.compare.leaderboard import BUDGET, Row
from recast_cli.engine.report.figures import COLOURS, MARKERS, STYLE
from recast_cli.engine.report.heat_maps import short
from recast_cli.engine.storage.atomic import atomic

OURS, GREY = COLOURS[1], "#666666"
LEVEL = "level"
"""Mark of a horizontal line that no label may cover."""
STEP = 1.13
"""Factor between points of equal floats, which stand beside one another."""
SPOTS: list[dict[str, Any]] = [
    {
        "position": (x * reach, y * reach),
        "ha": "left" if x > 0 else "right" if x < 0 else "center",
        "va": "bottom" if y > 0 else "top" if y < 0 else "center",
    }
    for reach in (9, 16, 26, 38, 52, 70)
    for x, y in ((1, 0), (0, 1), (0, -1), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))
]
"""Where a label may stand beside its point, in typographic points, the best place first."""


def plot_leaderboard(rows: Sequence[Row], path: Path) -> None:
    """Mean test top-1 against floats with the standard deviation over seeds; RECAST stands out in orange."""
    sources = list(dict.fromkeys(row.source for row in rows))
    # equal kinds look alike in all panels
    kinds = list(dict.fromkeys(row.kind for row in rows if row.kind != "recast"))
    colours = [colour for colour in COLOURS if colour != OURS]
    looks = {kind: (colours[place % 6], MARKERS[1:][place % 7]) for place, kind in enumerate(kinds)}
    looks["recast"] = (OURS, "o")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.3 + 4.6 * len(sources)), layout="constrained")
        axes = figure.subplots(len(sources), 1, squeeze=False)[:, 0]
        drawn = [
            draw_panel(axis, [row for row in rows if row.source == source and row.mean is not None], source, looks)
            for axis, source in zip(axes, sources, strict=True)
        ]
        figure.draw_without_rendering()  # labels are placed among what has its final place
        for axis, (points, taken) in zip(axes, drawn, strict=True):
            place_labels(axis, points, taken)
        with atomic(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def draw_panel(axis: Axes, rows: list[Row], source: str, looks: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Points, error bars and lines of one source.

    Returns:
        For each label its point (x, y), text and colour; and the texts that are there already.
    """
    axis.set(title=short(source, 80), ylabel="mean test top-1 (%)")
    axis.set_xlabel("floats trained beside the head (those of equal number stand side by side)")
    if not rows:
        axis.text(0.5, 0.5, "no method is finished yet", transform=axis.transAxes, ha="center", color=GREY)
        return [], []
    points, texts = [], []
    measured = [row for row in rows if row.floats]
    for row in measured:
        assert row.mean is not None
        colour, marker = looks[row.kind]
        ours = row.kind == "recast"
        x, y = beside(row, measured), 100 * row.mean
        axis.errorbar(
            x, y, 100 * (row.std or 0.0), color=colour, marker=marker, markersize=8 if ours else 5.5,
            markeredgecolor="white", markeredgewidth=0.6, capsize=2, linewidth=1, zorder=4 if ours else 3,
        )  # fmt: skip
        points.append((x, y, short(row.method, 32), colour, ours, 100 * (row.std or 0.0)))
    if measured:
        axis.set_xscale("log")
        floats = [row.floats for row in measured if row.floats]
        low, high = min(*floats, BUDGET), max(*floats, BUDGET)
        axis.set_xlim(low / 3.5, high * 4)  # labels stand on the right
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.axvline(BUDGET, color="#cccccc", linewidth=0.8, zorder=0)
        texts.append(axis.text(BUDGET, 0.0, f" {BUDGET} floats", transform=axis.get_xaxis_transform(), color="#888888",
                               fontsize=7, va="bottom"))  # fmt: skip
    else:
        axis.set_xticks([])
    lines = sorted((row for row in rows if not row.floats), key=lambda row: row.mean or 0.0)
    for place, row in enumerate(lines):
        y = 100 * (row.mean or 0.0)
        style = "--" if row.kind == "linear-probe" else ":"
        axis.axhline(y, color=GREY, linestyle=style, linewidth=1, zorder=1, gid=LEVEL)
        # the lower label below its line, the upper one above: such lines lie close together
        va, shift = ("top", -2) if place == 0 and len(lines) > 1 else ("bottom", 2)
        texts.append(
            axis.annotate(short(row.method, 32), (1, y), xycoords=("axes fraction", "data"), xytext=(-2, shift),
                          textcoords="offset points", ha="right", va=va, color=GREY, fontsize=8)
        )  # fmt: skip
    axis.margins(y=0.12)  # around the lines, too
    axis.grid(axis="y", color="#eeeeee", linewidth=0.6)
    axis.set_axisbelow(True)
    return points, texts


def beside(row: Row, rows: list[Row]) -> float:
    """Where a row stands: at its floats, the best of equal ones in the middle, the others beside it in turns."""
    rivals = sorted((each for each in rows if each.floats == row.floats), key=lambda each: -(each.mean or 0.0))
    rank = rivals.index(row)
    return (row.floats or 1) * STEP ** ((rank + 1) // 2 * (-1) ** rank)


def place_labels(axis: Axes, points: list[Any], texts: list[Any]) -> None:
    """Put each label beside its point where it covers no other label and no point, with a line where it is far."""
    figure = axis.get_figure()
    assert figure is not None
    taken: list[Bbox] = [text.get_window_extent() for text in texts]
    frame, unit = axis.get_window_extent(), figure.dpi / 72
    middles = [axis.transData.transform((x, y)) for x, y, *_ in points]
    marks = [Bbox.from_bounds(x - 4 * unit, y - 4 * unit, 8 * unit, 8 * unit) for x, y in middles]
    for (x, y, *_, spread), (middle, _) in zip(points, middles, strict=True):
        (_, low), (_, high) = (axis.transData.transform((x, y + shift)) for shift in (-spread, spread))
        marks.append(Bbox.from_extents(middle - unit, low, middle + unit, high))
    for line in axis.lines:
        if line.get_gid() == LEVEL:
            heights: Any = line.get_ydata()
            level = axis.transData.transform((1, heights[0]))[1]
            marks.append(Bbox.from_extents(frame.x0, level - unit, frame.x1, level + unit))
    for place in sorted(range(len(points)), key=lambda place: (not points[place][4], -points[place][1])):
        x, y, name, colour, ours, _ = points[place]
        label = axis.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8, color=colour,
            weight="bold" if ours else "normal", zorder=5,
        )  # fmt: skip
        costs: list[float] = []
        for spot in SPOTS:
            label.set(**spot)
            box = label.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            costs.append(sum(overlap(box, other) for other in taken + marks))
            costs[-1] += 0 if inside else box.width * box.height
            if not costs[-1]:
                break
        best = SPOTS[costs.index(min(costs))]
        label.set(**best)
        taken.append(label.get_window_extent())
        if max(map(abs, best["position"])) > 18:
            axis.annotate("", (x, y), xytext=best["position"], textcoords="offset points",
                          arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 3})  # fmt: skip


def overlap(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share."""
    shared = Bbox.intersection(one, other)
    return shared.width * shared.height if shared else 0.0
