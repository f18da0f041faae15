"""The options of a solver, checked."""

from __future__ import annotations

from typing import Any

from recast_cli.engine.errors import RecastError, check_seed
from recast_cli.engine.mimic.decompose.gradient import GradientOptions
from recast_cli.engine.mimic.decompose.solution import LOSSES
from recast_cli.engine.mimic.decompose.vae import VaeOptions

SolverOptions = GradientOptions | VaeOptions | None
"""None stands for the exact solver."""


def solver_options(solver: str, **given: Any) -> SolverOptions:
    """The recipe of a solver with what is `given` in it; what is None is left as it is.

    Raises:
        RecastError: No such solver, an option that does not belong to it, or a value out of range.
    """
    kinds = {"exact": None, "gradient": GradientOptions, "vae": VaeOptions}
    if solver not in kinds:
        raise RecastError(f"--solver {solver} is unknown", "Use exact, gradient or vae.")
    given = {name: value for name, value in given.items() if value is not None}
    kind = kinds[solver]
    known = kind.__dataclass_fields__ if kind else {}
    for name, value in given.items():
        if name not in known:
            raise RecastError(f"--{name} does not belong to --solver {solver}", "Leave it out, or take another solver.")
        if name == "loss" and value not in LOSSES:
            raise RecastError(f"--loss {value} is unknown", f"Use {' or '.join(LOSSES)}.")
        if (name in ("steps", "lr") and not value > 0) or (name == "noise" and not value >= 0):
            least = "0 or above" if name == "noise" else "above 0"
            raise RecastError(f"--{name} {value} is out of range", f"Give a number {least}.")
        if name == "seed":
            check_seed(name, value)
    return kind(**given) if kind else None
