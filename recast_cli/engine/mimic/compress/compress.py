"""A source as a base in few bits: weigh, plan, round, write."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from recast_cli.engine.base.base import Base
from recast_cli.engine.base.codec.code import Code, Encode
from recast_cli.engine.base.file import save_base
from recast_cli.engine.errors import RecastError, option
from recast_cli.engine.images.unlabelled import list_images, read_images
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.mimic.compress.fisher import Curvature, curvatures
from recast_cli.engine.mimic.compress.matrices import is_large, matrices, tensors_of_base, tensors_of_source
from recast_cli.engine.mimic.compress.plan import Compression, fixed_code, is_enough, planned, small_codes
from recast_cli.engine.mimic.compress.rate import Job, fit
from recast_cli.engine.mimic.compress.rounding import to_bits
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.decompose.finalize import finalize
from recast_cli.engine.mimic.decompose.solver_options import SolverOptions
from recast_cli.engine.mimic.options import HALF, check_numbers
from recast_cli.engine.progress import Progress
from recast_cli.engine.source.source import Source

KEPT = 2**28
"""Bytes up to which a file is kept in memory, so that nothing is rounded once more to write it."""


def compress(
    source: Source,
    layout: Layout,
    *,
    size: int | None = None,
    bits: int | None = None,
    group: int | None = None,
    calibrate: Path | None = None,
    options: SolverOptions = None,
    base: Base | None = None,
    path: Path | None = None,
    device: str | None = None,
    verify: Callable[[Base], Mapping[str, Any]] | None = None,
    announce: Callable[[Compression], None] | None = None,
    progress: Progress | None = None,
) -> Base:
    """A base whose tensors are stored in few bits.

    With the exact solver and without images one bank is in memory at a time, as in `mimic`, else the whole network.

    Args:
        source: As of `mimic`, like `layout`, `options` and `verify`.
        size: Most bytes the file may take: float16 where that will do, else integers in as many bits as they need, see
            `Deflated`.
        bits: Of every weight, instead of a size: 2 to 8, see `Fixed`, or 16 for float16.
        group: Weights a scale, with bits; default 64.
        calibrate: Folder of images to calibrate with, labelled or not: by `curvatures`, steps are as fine as decisions
            ask for, and errors are fed back.
        base: What is rounded; default: what `mimic` makes.
        path: Where the base goes; without it it stays in memory, and `save_base` writes the same file.
        device: Where images are looked at; default: CUDA where it is.
        announce: Called with the plan before it is carried out.
        progress: Called as the work goes on.

    Raises:
        RecastError: A number is out of range, the size cannot be met, there are no images, or images are given and
            nobody knows the network.
        OSError: The base cannot be written.
    """
    check_numbers(size, bits, group, "group")
    if size is not None and is_enough(source, layout, options, size):
        size, bits = None, HALF
    if calibrate is not None:
        check_calibration(source, calibrate, bits)  # before a solver may run for long
    if base is None and (calibrate is not None or options is not None):
        base = mimic(source, layout, options=options, progress=progress)
    calibrated = None
    curves: Mapping[str, Curvature] = {}
    if calibrate is not None:
        assert base is not None
        pixels = read_images(calibrate, base.known_architecture().preprocessing, progress)
        shapes = {name: matrices(name, t.shape) for name, t in tensors_of_base(base) if is_large(t.shape)}
        curves = curvatures(base, pixels, shapes, device, progress)
        calibrated = {"images": len(pixels), "pictures": len(pixels)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        return tensors_of_source(source, layout) if base is None else tensors_of_base(base)

    plan = partial(planned, source, layout, options)
    codes: dict[str, Code] = small_codes(tensors())
    encode: Encode
    if size is None:
        codes |= {name: fixed_code(name, t, bits or HALF, group) for name, t in tensors() if is_large(t.shape)}
        encode = partial(to_bits, curves)
        if announce:
            announce(plan(codes))
    else:
        job = Job(tensors, codes, curves, plan, keep=base is not None or size <= KEPT)
        codes, encode = fit(job, size, announce, progress)
    about = {**plan(codes).to_dict(), "calibrated": calibrated}
    if base is None:
        return mimic(
            source,
            layout,
            codes=codes,
            encode=encode,
            compression=about,
            path=path,
            verify=verify,
            progress=progress,
        )
    stored = {name: tensor for name, tensor in base.tensors.items() if name not in codes}
    for name, code in codes.items():
        stored |= encode(name, base.tensors[name], code)
    base = finalize(replace(base, tensors=stored, codes=codes, compression=about), source)
    if verify is not None:
        base = replace(base, verified=dict(verify(base)))
    return base if path is None else save_base(base, path)


def check_calibration(source: Source, calibrate: Path, bits: int | None) -> None:
    """Raise RecastError where a source cannot be calibrated with these images, or nothing would be rounded."""
    source.known_architecture(f"Leave out {option('calibrate')}.")
    if bits == HALF:
        hint = f"Leave out {option('calibrate')}, or ask for less."
        raise RecastError("16 bits a weight will do, so nothing is rounded", hint)
    list_images(calibrate)
