"""Source + layout + solver -> base."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from recast_cli.engine.base import Base, coefficient_key, identify, template_key
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout import Bank, Layout
from recast_cli.engine.solve import GradientOptions, Solution, VaeOptions, solve_exact, solve_gradient, solve_vae
from recast_cli.engine.source import Source

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is in all, and a few words."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SolverOptions = GradientOptions | VaeOptions | None
"""None stands for the exact solver."""


def mimic(
    source: Source,
    layout: Layout,
    *,
    options: SolverOptions = None,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Base:
    """Rewrite the source's weights as mixtures of shared templates.

    Args:
        source: From `open_source`.
        layout: From `plan_layout(source.modules)`.
        options: Solver and recipe; default: exact.
        dtype: Stored type of the templates: float32, bfloat16 or float16.
        progress: Called after every bank (exact) or step.

    Raises:
        RecastError: The templates would not fit into memory, or a weight is NaN or infinite.
    """
    check_memory(layout, copies=2 if options is None else 5)
    tensors, errors = dict(source.tensors), {}
    for number, bank in enumerate(layout.banks):
        weights = torch.stack([tensors.pop(f"{module}.weight").float() for module in bank.modules])
        if not weights.isfinite().all():
            raise RecastError(f"{source.name}: weights of {bank.name} are NaN or infinite", "Give a sound checkpoint.")
        solution = solve(weights, bank, layout, number, options, progress)
        stored = solution.templates.to(DTYPES[dtype])
        solution = Solution(stored.float(), solution.coefficients)
        tensors[template_key(bank)] = stored
        for module, coefficients, error in zip(
            bank.modules, solution.coefficients, solution.errors(weights), strict=True
        ):
            tensors[coefficient_key(module)] = coefficients.contiguous()
            errors[module] = error
    name = {type(None): "exact", GradientOptions: "gradient", VaeOptions: "vae"}[type(options)]
    return Base(
        layout=layout,
        tensors=tensors,
        base_id=identify(layout, tensors),
        architecture=source.architecture,
        source=source.name,
        source_digest=source.digest,
        errors=errors,
        solver={"name": name, "dtype": dtype, **(asdict(options) if options else {})},
        aliases=source.aliases,
    )


def solve(
    weights: Tensor, bank: Bank, layout: Layout, number: int, options: SolverOptions, progress: Progress | None
) -> Solution:
    """One bank by the solver that the options stand for."""
    total = len(layout.banks) * (options.steps if options else 1)

    def step(done: int, loss: float) -> None:
        if progress and options:
            progress(number * options.steps + done, total, f"{bank.name}  loss {loss:.3g}")

    if isinstance(options, GradientOptions):
        return solve_gradient(weights, bank.templates, layout.sets, options, step)
    if isinstance(options, VaeOptions):
        return solve_vae(weights, bank.templates, layout.sets, options, step)
    solution = solve_exact(weights, bank.templates, layout.sets)
    if progress:
        progress(number + 1, total, bank.name)
    return solution


def check_memory(layout: Layout, copies: int) -> None:
    """Raise RecastError where the templates and `copies` of the largest bank exceed the memory that is free."""
    largest = max(len(bank.modules) * bank.numel for bank in layout.banks)
    needed = 4 * (layout.template_parameters + copies * largest)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return
    # the kernel gives caches back, so free pages alone would refuse too early
    if needed > max(free, 0.8 * total):
        raise RecastError(
            f"{layout.template_parameters:,} template values need about {needed / 2**30:.1f} GiB, "
            f"more than the memory of this machine ({total / 2**30:.1f} GiB)",
            "Take fewer modules or templates.",
        )
