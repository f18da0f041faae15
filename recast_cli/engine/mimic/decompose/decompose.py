"""Source + layout + solver -> base, bank by bank: neither the source nor the base need ever be in memory as a whole."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recast_cli.engine.base.base import Base, base_of, identify
from recast_cli.engine.base.codec.code import Code, Encode, round_to_nearest
from recast_cli.engine.base.file import metadata_of
from recast_cli.engine.base.header import BaseHeader, widest
from recast_cli.engine.base.mixture import with_means
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.layout import Bank, Layout, coefficient_key, template_key
from recast_cli.engine.mimic.decompose.exact import solve_exact
from recast_cli.engine.mimic.decompose.gradient import solve_gradient
from recast_cli.engine.mimic.decompose.manifest import TORCH_TYPES, base_specs, manifest, stored_specs
from recast_cli.engine.mimic.decompose.solution import Solution
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions, SolverOptions, VaeOptions
from recast_cli.engine.mimic.decompose.vae import solve_vae
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.device import threads
from recast_cli.engine.source.source import Source
from recast_cli.engine.storage.background import Background
from recast_cli.engine.storage.digest import Hashed, digest, hash_bytes, hash_templates, hashed
from recast_cli.engine.storage.tensors import read_stored, spec_of
from recast_cli.engine.storage.writer import writing


def mimic(
    source: Source,
    layout: Layout,
    *,
    options: SolverOptions = None,
    dtype: str = "float32",
    codes: Mapping[str, Code] | None = None,
    encode: Encode = round_to_nearest,
    compression: Mapping[str, Any] | None = None,
    path: Path | None = None,
    verify: Callable[[Base], Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> Base:
    """Rewrite the source's weights as mixtures of shared templates.

    Args:
        source: From `open_source`.
        layout: From `plan_layout(source.modules)`.
        options: Solver and recipe; default: exact.
        dtype: Stored type of the templates: float32, bfloat16 or float16.
        codes: Tensors of the base that are stored in fewer bits.
        encode: What makes of them what is stored.
        compression: What the file says about how `codes` were chosen.
        path: Where the base goes. It is written while it is made, so that no more than one bank is in memory, and its
            tensors are read when they are asked for; without it the base is made in memory, and `save_base` writes
            the same file.
        verify: Called with the base once all its tensors are there; what it returns stands in the file as `verified`:
            `images`, `agreement` and `feature_cosine`, for which room is kept. Where it raises there is no file.
        progress: Called after every bank (exact) or step.

    Raises:
        RecastError: The largest bank would not fit into memory, or a weight is NaN or infinite.
        OSError: The base cannot be written.
    """
    check_memory(layout, kept=layout.template_parameters if path is None else 0, copies=4 if options is None else 7)
    header, codes = manifest(source, layout, options, dtype, compression), dict(codes or {})
    findings = Findings(codes, encode)
    # templates that are weights are only compared, and after each comparison torch's other threads spin on the cores
    # that hashing and writing need
    compared = options is None and not codes and all(bank.stored == len(bank.modules) for bank in layout.banks)
    few = partial(threads, 1 if compared else torch.get_num_threads())
    pieces = decompose(source, header, options, findings, progress)
    if path is None:
        with few(), closing(pieces):
            tensors = {key: tensor.clone() for key, tensor in pieces}  # the source may be a model that is trained on
        base = base_of(findings.complete(header), tensors, codes)
        return replace(base, verified=dict(verify(base))) if verify else base
    path, room = Path(path), widest(metadata_of(header, codes), layout, verified=verify is not None)
    with writing(path, stored_specs(base_specs(source, layout, dtype), codes), room) as writer:
        with few(), closing(pieces):
            writer.write_all(pieces)
        header = findings.complete(header)
        if verify:
            header = replace(header, verified=dict(verify(base_of(header, writer.written(), codes))))
        writer.finish(metadata_of(header, codes))
    return base_of(replace(header, path=path), read_stored(path), codes)


@dataclass
class Findings:
    """What is known of a base, besides its tensors, once they all have been made.

    Attributes:
        codes: Tensors that are stored in fewer bits, and `encode`, what makes of them what is stored.
        errors: By module.
        source: Hashes of the source's tensors.
        base: Hashes of the base's tensors; of templates, one each.
    """

    codes: Mapping[str, Code]
    encode: Encode
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    source: dict[str, Hashed] = field(default_factory=dict)
    base: dict[str, Hashed] = field(default_factory=dict)

    def encoded(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """What is stored of a tensor that has a code, noted."""
        stored = self.encode(name, tensor, self.codes[name])
        self.base |= {part: hashed(value) for part, value in stored.items()}
        return stored

    def note(self, name: str, tensor: Tensor) -> None:
        """A tensor of the source; one without a code is the base's as well."""
        self.source[name] = hashed(tensor)
        if name not in self.codes:
            self.base[name] = self.source[name]

    def complete(self, header: BaseHeader) -> BaseHeader:
        """`header` with its errors and digests."""
        base_id = identify(header.layout, self.base, self.codes)
        return replace(header, base_id=base_id, source_digest=digest(self.source), errors=self.errors)


def decompose(
    source: Source, header: BaseHeader, options: SolverOptions, findings: Findings, progress: Progress | None
) -> Generator[tuple[str, Tensor]]:
    """Name and value of every tensor of the base, one bank at a time; `findings` are complete after the last one.

    Every byte of the source is hashed once, by a thread, while the next tensors are read and written.
    """
    layout, dtype = header.layout, TORCH_TYPES[header.solver["dtype"]]
    solver = partial(solve, layout=layout, options=options, progress=progress)
    with Background() as background:
        for number, bank in enumerate(layout.banks):
            # a generator of its own, so that nothing of a bank is left in memory when the next one is read
            yield from decompose_bank(source, bank, partial(solver, number=number), dtype, findings, background)
            background.settle()
        mixed = {f"{module}.weight" for module in layout.modules}
        for name in (name for name in source.tensors if name not in mixed):
            yield from keep(name, source.tensors[name], findings, background)
            background.settle()


def decompose_bank(
    source: Source,
    bank: Bank,
    solver: Callable[[Tensor, Bank], Solution],
    dtype: torch.dtype,
    findings: Findings,
    background: Background,
) -> Iterator[tuple[str, Tensor]]:
    """Name and value of the templates and of the coefficients of one bank, which `background` hashes."""
    weights = [source.tensors[f"{module}.weight"] for module in bank.modules]
    floats = [weight.float() for weight in weights]
    stacked = torch.stack(floats) if len(floats) > 1 else floats[0][None]  # of one weight no copy
    if not torch.stack(stacked.aminmax()).isfinite().all():
        raise RecastError(f"{source.name}: weights of {bank.name} are NaN or infinite", "Give a sound checkpoint.")
    solution = solver(stacked, bank)
    key = template_key(bank)
    templates, code = solution.templates.to(dtype), findings.codes.get(key)
    stored = {key: templates} if code is None else findings.encoded(key, templates)
    kept = templates.float() if code is None else code.decode(key, stored)
    errors = Solution(with_means(kept) if bank.means else kept, solution.coefficients).errors(stacked, bank.means)
    findings.errors |= zip(bank.modules, errors, strict=True)

    def record() -> None:
        hashes = [hash_bytes(weight) for weight in weights]
        for module, weight, known in zip(bank.modules, weights, hashes, strict=True):
            findings.source[f"{module}.weight"] = spec_of(weight), [known]
        if code is None:
            findings.base[key] = spec_of(templates), hash_templates(templates, weights, hashes)

    background.add(templates.nbytes + sum(weight.nbytes for weight in weights), record)
    yield from stored.items()
    for module, coefficients in zip(bank.modules, solution.coefficients, strict=True):
        findings.base[coefficient_key(module)] = hashed(coefficients)
        yield coefficient_key(module), coefficients.contiguous()


def keep(name: str, tensor: Tensor, findings: Findings, background: Background) -> Iterator[tuple[str, Tensor]]:
    """Name and value of what the base holds of another tensor of the source, which `background` hashes."""
    background.add(tensor.nbytes, partial(findings.note, name, tensor))
    yield from findings.encoded(name, tensor).items() if name in findings.codes else ((name, tensor),)


def solve(
    weights: Tensor, bank: Bank, layout: Layout, number: int, options: SolverOptions, progress: Progress | None
) -> Solution:
    """What is stored of one bank by the solver that the options stand for, and coefficients (layers, K, n).

    Both templates that a kernel is cut into have the coefficient that the solver gives the kernel.
    """
    total = len(layout.banks) * (options.steps if options else 1)

    def step(done: int, loss: float) -> None:
        if progress and options:
            progress(number * options.steps + done, total, f"{bank.name}  loss {loss:.3g}")

    if isinstance(options, GradientOptions):
        templates, coefficients = solve_gradient(weights, bank.stored, layout.sets, options, step)
    elif isinstance(options, VaeOptions):
        templates, coefficients = solve_vae(weights, bank.stored, layout.sets, options, step)
    else:
        templates, coefficients = solve_exact(weights, bank.stored, layout.sets)
        if progress:
            progress(number + 1, total, bank.name)
    return Solution(templates, coefficients.repeat(1, 1, bank.templates // bank.stored))


def check_memory(layout: Layout, kept: int, copies: int) -> None:
    """Raise RecastError where `kept` values and `copies` of the largest bank exceed the memory that is free."""
    largest = max(len(bank.modules) * bank.numel for bank in layout.banks)
    needed = 4 * (kept + copies * largest)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return
    # the kernel gives caches back, so free pages alone would refuse too early
    if needed > max(free, 0.8 * total):
        raise RecastError(
            f"Banks of up to {largest:,} values need about {needed / 2**30:.1f} GiB, "
            f"more than the memory of this machine ({total / 2**30:.1f} GiB)",
            "Take fewer modules or templates.",
        )
