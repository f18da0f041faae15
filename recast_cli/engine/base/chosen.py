"""Chosen coefficients: a few entries of a network's vectors that a task picks for itself and moves. Without torch.

The vectors are the gains and biases of norms and the biases of modules. In RECAST's terms each entry is a coefficient
of a template that is a piece of the weight: a gain is that of a column of the weight behind it, W = sum_j c_j W[:, j]
e_j^T, and there are hundreds a module that cost nothing to store. A task moves k of them and says which, in `places`
(k, 2), each the number of a vector in the dictionary, and of an entry in the vector.

Beside them it moves the layout's coefficients, one by one, or neighbours alike. So its `coefficients` are (m + k,):
what is added to the layout's, m numbers, and to the chosen entries, k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.errors import DamagedFile, RecastError
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.storage.header import FLOATS, read_header

if TYPE_CHECKING:
    from torch import Tensor


class Budget(NamedTuple):
    """The numbers of a task that chooses: m are added to coefficients of the layout, k to entries with a place each."""

    of_layout: int
    entries: int


def spend(numbers: int, layout: Layout, of_layout: bool = True) -> Budget:
    """What a task may choose for so many numbers.

    All coefficients of the layout move, if that leaves as many numbers for entries; or half as many, neighbouring
    modules alike; or none. The rest are entries, two numbers each.

    Args:
        numbers: In all.
        layout: Of the base.
        of_layout: Whether the layout's coefficients may move.

    Example:
        >>> spend(48, base.layout), spend(96, base.layout), spend(24, base.layout)
        (Budget(of_layout=24, entries=12), Budget(of_layout=48, entries=24), Budget(of_layout=0, entries=12))
    """
    moved = next((m for m in sizes(layout)[:-1] if of_layout and 2 * m <= numbers), 0)
    return Budget(moved, (numbers - moved) // 2)


def sizes(layout: Layout) -> list[int]:
    """What m may be, largest first: all coefficients, half where every module has one and a neighbour, or none."""
    return [layout.coefficients, *([layout.coefficients // 2] if layout.alike else []), 0]


def check_count(added: int, layout: Layout, what: str) -> None:
    """Raise DamagedFile unless `added` numbers can be those of the layout in a task that chooses, see `sizes`."""
    if added not in sizes(layout):
        wanted = " or ".join(map(str, sizes(layout)))
        raise DamagedFile(f"{what} moves {added} coefficients of the layout, and {wanted} can move", OTHER)


def spread(added: Sequence[float], every: int) -> list[float]:
    """What is added to each of `every` coefficients of the layout by m numbers: neighbours may share one."""
    return [value for value in added for _ in range(every // len(added))] or [0.0] * every


STATISTICS = ("running_mean", "running_var")
"""Vectors of batch norm that are no coefficients."""


def dictionary(shapes: Mapping[str, tuple[int, ...]], architecture: Architecture | None) -> dict[str, int]:
    """The vectors that a task may choose from, sorted by name: name -> entries.

    Args:
        shapes: Of all floating-point tensors of a base by name, as `Base.value` gives them.
        architecture: Of the base; its classifier's vectors are left out, as a task has a head of its own.
    """
    heads = architecture.classifiers if architecture else ()
    return {
        name: shape[0]
        for name, shape in sorted(shapes.items())
        if len(shape) == 1
        and not name.endswith(STATISTICS)
        and not name.startswith(tuple(f"{head}." for head in heads))
    }


def read_dictionary(path: Path, architecture: Architecture | None) -> dict[str, int]:
    """The dictionary of a base's file: vectors keep their names there, in whatever type they are stored."""
    header: dict[str, Any] = {name: entry for name, entry in read_header(path).items() if name != "__metadata__"}
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if entry["dtype"] in FLOATS}
    return dictionary(shapes, architecture)


def check_places(places: Sequence[Sequence[int]], entries: Mapping[str, int], what: str) -> None:
    """Raise RecastError unless all places are in the dictionary, each once.

    Args:
        places: k pairs (vector, entry).
        entries: From `dictionary`.
        what: Whose places, for the message.
    """
    names, sizes = [*entries], [*entries.values()]
    for vector, entry in places:
        if not 0 <= vector < len(names):
            raise RecastError(f"{what} has a place in vector {vector}, the base has {len(names)}", OTHER)
        if not 0 <= entry < sizes[vector]:
            has = f"{names[vector]} has {sizes[vector]} entries"
            raise RecastError(f"{what} has a place at entry {entry}, and {has}", OTHER)
    for one, next_one in pairwise(sorted(map(tuple, places))):
        if one == next_one:
            raise RecastError(f"{what} has entry {one[1]} of {names[one[0]]} twice", OTHER)


OTHER = "Restore the right file, or adapt the task again."


def add_entries(state: dict[str, Tensor], names: Sequence[str], places: Tensor, values: Tensor) -> dict[str, Tensor]:
    """The vectors that are changed, in float32: the others of `state` stay as they are.

    Args:
        state: Vectors by name, at least those that `places` name.
        names: Of the dictionary, in its order.
        places: (k, 2) integers.
        values: (k,) float32, what is added.
    """
    changed = {}
    for number, rows in by_vector(places).items():
        own = state[names[number]]
        added = (places[rows, 1].to(own.device).long(), values[rows].to(own.device))
        changed[names[number]] = own.float().index_add(0, *added)
    return changed


def by_vector(places: Tensor) -> dict[int, list[int]]:
    """Number of a vector -> the rows of `places` (k, 2) that are entries of it."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(places[:, 0].tolist()):
        rows.setdefault(number, []).append(row)
    return rows
