"""Which way to store each tensor, so that the errors of all add up to little and the bytes to no more than the budget.

Of every tensor only the ways on the lower convex hull of error over bytes are looked at. From the smallest way of each,
whichever step up the hull saves most error a byte is taken first (Lagrange's multiplier, falling); steps that no longer
fit are passed over. This misses the optimum by less than one step (Everett 1963, doi:10.1287/opre.11.3.399).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from recast_cli.engine.compress.measure import Choice


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice] | None:
    """The chosen way of each tensor; None where even the smallest ways take more than `budget` bytes."""
    hulls = {name: hull(ways) for name, ways in choices.items()}
    spent = sum(ways[0].nbytes for ways in hulls.values())
    if spent > budget:
        return None
    place = dict.fromkeys(hulls, 0)
    steps: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        ways, here = hulls[name], place[name]
        if here + 1 < len(ways):
            heapq.heappush(steps, (-slope(ways[here], ways[here + 1]), name))

    for name in hulls:
        offer(name)
    while steps:
        _, name = heapq.heappop(steps)
        ways, here = hulls[name], place[name]
        more = ways[here + 1].nbytes - ways[here].nbytes
        if spent + more <= budget:
            spent += more
            place[name] += 1
            offer(name)
    return {name: ways[place[name]] for name, ways in hulls.items()}


def smallest(choices: Mapping[str, Sequence[Choice]]) -> int:
    """The fewest bytes in which all tensors can be stored."""
    return sum(min(way.nbytes for way in ways) for ways in choices.values())


def hull(ways: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of error over bytes, from the fewest bytes to the least error."""
    kept: list[Choice] = []
    for way in sorted(ways, key=lambda each: (each.nbytes, each.error)):
        if kept and way.error >= kept[-1].error:
            continue
        while len(kept) > 1 and slope(kept[-2], kept[-1]) <= slope(kept[-1], way):
            kept.pop()
        kept.append(way)
    return kept


def slope(less: Choice, more: Choice) -> float:
    """Error saved a byte."""
    return (less.error - more.error) / (more.nbytes - less.nbytes)
