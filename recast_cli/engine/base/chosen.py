"""Chosen coefficients: a few entries of a network's vectors that a task picks for itself and moves. Without torch.

The vectors are the gains and biases of norms and the biases of modules. In RECAST's terms each entry is a coefficient
of a template that is a piece of the weight: a gain is that of a column of the weight behind it, W = sum_j c_j W[:, j]
e_j^T, and there are hundreds a module that cost nothing to store. A task moves k of them and says which: `coefficients`
(k,), what is added to each entry, and `places` (k, 2), each the number of a vector in the dictionary, and of an entry
in the vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.errors import RecastError
from recast_cli.engine.storage.header import FLOATS, read_header

if TYPE_CHECKING:
    from torch import Tensor

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
