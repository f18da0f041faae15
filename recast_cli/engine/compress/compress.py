"""A source as a base of a wanted size: plan, round, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recast_cli.engine.base import Base, save_base
from recast_cli.engine.compress.calibrate import calibrate
from recast_cli.engine.compress.pictures import list_pictures, read_pictures
from recast_cli.engine.compress.plan import Compression, check, plan_codes
from recast_cli.engine.compress.sensitivity import sensitivity
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout import Layout
from recast_cli.engine.mimic import mimic
from recast_cli.engine.solve import SolverOptions
from recast_cli.engine.source import Source

Progress = Callable[[int, int, str], None]


def compress(
    source: Source,
    layout: Layout,
    *,
    size: int | None = None,
    bits: int | None = None,
    group: int | None = None,
    pictures: Path | None = None,
    options: SolverOptions = None,
    base: Base | None = None,
    path: Path | None = None,
    announce: Callable[[Compression], None] | None = None,
    progress: Progress | None = None,
) -> Base:
    """A base whose tensors are stored in few bits.

    Without pictures one bank is in memory at a time, as in `mimic`; with them the whole network is.

    Args:
        source: From `open_source`.
        layout: From `plan_layout`.
        size: Most bytes the file may take; or `bits`. As of `plan_codes`, like the next two.
        bits: A weight.
        group: Values a scale.
        pictures: Folder to calibrate with: bits by how much each tensor matters on them, rounding by `calibrate`.
        options: Solver and recipe, as of `mimic`.
        base: What is rounded, with pictures; default: what `mimic` makes.
        path: Where the base goes; without it it stays in memory, and `save_base` writes the same file.
        announce: Called with the plan before it is carried out.
        progress: Called as the work goes on.

    Raises:
        RecastError: The size cannot be met, there are no pictures, or pictures are given and nobody knows the network.
        OSError: The base cannot be written.
    """
    check(size, bits, group)
    if pictures is None:
        plan = plan_codes(source, layout, size=size, bits=bits, group=group, options=options)
        if announce:
            announce(plan)
        about = {**plan.to_dict(), "calibrated": None}
        return mimic(source, layout, options=options, codes=plan.codes, compression=about, path=path, progress=progress)
    if source.architecture is None:
        raise RecastError(f"{source.name} has no known architecture, so it cannot run", "Leave out --calibrate.")
    list_pictures(pictures)  # before a solver may run for long
    base = base or mimic(source, layout, options=options, progress=progress)
    pixels = read_pictures(pictures, source.architecture, progress)
    weights = sensitivity(base, pixels, progress) if size is not None else None
    plan = plan_codes(source, layout, size=size, bits=bits, group=group, options=options, sensitivity=weights)
    if not plan.quantised:
        raise RecastError("16 bits a weight will do, so nothing is rounded", "Leave out --calibrate, or ask for less.")
    if announce:
        announce(plan)
    base = calibrate(source, base, plan.codes, pixels, progress)
    about = {**plan.to_dict(), "calibrated": {"pictures": len(pixels)}}
    base = replace(base, compression=about)
    return base if path is None else save_base(base, path)
