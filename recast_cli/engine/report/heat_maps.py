"""Heat maps from -1 to 1, as many side by side as fit: coefficients within groups, templates of a role, tasks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import SubFigure

from recast_cli.engine.measure.diagnose import BankDiagnosis, Matrix, RoleDiagnosis

MOST_MAPS, WIDTH = 24, 10.0  # heat maps in a plot; its inches
Series = dict[str, list[BankDiagnosis]]
"""Role and shape -> its banks."""


class Map(NamedTuple):
    """One heat map: its title, its matrix, and the names along both edges."""

    title: str
    matrix: Matrix
    names: list[str]


def role_maps(roles: Sequence[RoleDiagnosis]) -> tuple[list[Map], int]:
    """A map for every role of several templates, and how many stand side by side."""
    maps = [
        Map(f"{short(role.role, 28)} {'×'.join(map(str, role.shape))}", role.similarity, short_names(role.banks))
        for role in roles
        if role.similarity and len(role.banks) == role.templates
    ]
    return maps, max(1, min(4, len(maps)))


def choose_maps(series: Series) -> tuple[list[Map], int]:
    """All heat maps, role by role, and how many stand side by side: where it fits, a row begins with a role."""
    maps = [
        Map(bank.name, bank.coefficient_similarity, short_names(bank.modules))
        for banks in series.values()
        for bank in sorted(banks, key=lambda bank: bank.group)
        if bank.coefficient_similarity is not None
    ]
    drawn = min(len(maps), MOST_MAPS)
    largest = max((len(each.names) for each in maps[:drawn]), default=0)
    long = any(len(each.title) > 23 for each in maps)
    fits = 6 if largest <= 4 and not long else 4 if largest <= 8 else 3 if largest <= 16 else 2
    lengths = {sum(bank.coefficient_similarity is not None for bank in banks) for banks in series.values()} - {0}
    if len(lengths) == 1 and 1 < (length := lengths.pop()) <= fits:
        return maps, min(length * (fits // length), drawn)
    return maps, math.ceil(drawn / math.ceil(drawn / fits)) if drawn else 1


def map_sizes(maps: list[Map], width: int) -> tuple[float, float]:
    """Edge of a heat map, and height of a grid with `width` in a row, with all texts, in inches; 0 for no maps."""
    text = 0.07 * max((len(name) for each in maps for name in each.names), default=0)
    edge = max(0.9, 0.32 * max((len(each.names) for each in maps), default=0))
    edge = min(WIDTH / width - text - 0.35, edge, 4.5)
    return edge, math.ceil(len(maps) / width) * (edge + text + 0.4) + 0.9 if maps else 0.0


def draw_maps(part: SubFigure, maps: list[Map], width: int, heading: str) -> None:
    """Heat maps on one scale from -1 to 1; a grey cell is undefined."""
    part.suptitle(heading, fontsize=9)
    axes = part.subplots(math.ceil(len(maps) / width), width, squeeze=False).ravel()
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#cccccc")
    for axis, (title, matrix, names) in zip(axes, maps, strict=False):
        values = np.ma.masked_invalid(np.array(matrix, dtype=float))
        mesh = axis.pcolormesh(values, cmap=colours, vmin=-1, vmax=1, edgecolors="white", linewidth=0.5)
        step = math.ceil(0.12 * len(names) / map_sizes(maps, width)[0])
        ticks = [place + 0.5 for place in range(0, len(names), step)]
        flat = max(map(len, names)) * len(ticks) <= 14 * map_sizes(maps, width)[0]
        axis.set_xticks(ticks, names[::step], fontsize=7, rotation=0 if flat else 90)
        axis.set_yticks(ticks, names[::step], fontsize=7)
        axis.tick_params(length=0, pad=2)
        axis.spines[:].set_visible(False)
        axis.set(aspect="equal", ylim=(len(names), 0))
        axis.set_title(short(title, int(15 * WIDTH / width) - 2), fontsize=7.5)
        for row, column in np.ndindex(values.shape) if len(names) <= 6 else ():
            value = matrix[row][column]
            text = "–" if value is None else f"{round(value, 2) + 0.0:.2f}"  # + 0.0 makes -0.0 a plain zero
            ink = "white" if abs(value or 0.0) > 0.6 else "black"
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=ink)
    for axis in axes[len(maps) :]:
        axis.remove()
    part.colorbar(mesh, ax=axes[: len(maps)], location="bottom", shrink=0.3, aspect=30, ticks=[-1, -0.5, 0, 0.5, 1])


def short(name: str, limit: int) -> str:
    """`name` in printable characters, with … inside where it is longer than `limit`."""
    name = "".join(letter if letter.isprintable() else " " for letter in name).strip()
    return name if len(name) <= limit else f"{name[: limit // 3]}…{name[len(name) - (limit - limit // 3 - 1) :]}"


def short_names(modules: tuple[str, ...]) -> list[str]:
    """Only the components in which modules of one role differ: blocks.0.attn.qkv, blocks.1.attn.qkv -> 0, 1."""
    parts = [module.split(".") for module in modules]
    differing = [place for place, each in enumerate(zip(*parts, strict=True)) if len(set(each)) > 1]
    return [short(".".join(each[place] for place in differing), 12) for each in parts]
