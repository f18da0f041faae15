"""The solvers and their recipes, checked; no torch."""

from dataclasses import dataclass
from typing import Any

from recast_cli.engine.errors import OptionError, check_seed, option

DTYPES = ("float32", "bfloat16", "float16")
"""Types that templates may be stored in."""
LOSSES = ("smooth-l1", "mse")
"""Names of the losses that `gradient` and `vae` know."""


@dataclass(frozen=True)
class GradientOptions:
    """The published recipe: RMSprop, learning rate cut to a tenth every 200 steps, gradients clipped at norm 1.

    Attributes:
        loss: `smooth-l1` (weighted 2) or `mse`.
        noise: Standard deviation of the Gaussian noise on the coefficients while fitting (Eq. 3).
        steps: Number of descent steps a bank.
        lr: Learning rate at the start.
        seed: Of templates, coefficients and noise.
    """

    loss: str = "smooth-l1"
    noise: float = 1e-4
    steps: int = 1000
    lr: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class VaeOptions:
    """The published settings: hidden size 8, RMSprop at 2e-3 with a cosine, 2500 steps, no KL term.

    Attributes:
        loss: `smooth-l1` or `mse`.
        kl: Sample the coefficients and add the KL divergence from a standard normal, per weight.
        steps: Number of descent steps a bank.
        lr: Learning rate at the start of the cosine.
        seed: Of encoder, templates and samples.
    """

    loss: str = "smooth-l1"
    kl: bool = False
    steps: int = 2500
    lr: float = 2e-3
    seed: int = 0


SolverOptions = GradientOptions | VaeOptions | None
"""None stands for the exact solver."""


def solver_options(solver: str, **given: Any) -> SolverOptions:
    """The recipe of a solver with what is `given` in it; what is None is left as it is.

    Raises:
        RecastError: No such solver, an option that does not belong to it, or a value out of range.
    """
    kinds = {"exact": None, "gradient": GradientOptions, "vae": VaeOptions}
    if solver not in kinds:
        raise OptionError("solver", f"{solver} is unknown", "Use exact, gradient or vae.")
    given = {name: value for name, value in given.items() if value is not None}
    kind = kinds[solver]
    known = kind.__dataclass_fields__ if kind else {}
    for name, value in given.items():
        if name not in known:
            hint = "Leave it out, or take another solver."
            raise OptionError(name, f"does not belong to {option('solver', solver)}", hint)
        if name == "loss" and value not in LOSSES:
            raise OptionError(name, f"{value} is unknown", f"Use {' or '.join(LOSSES)}.")
        if (name in ("steps", "lr") and not value > 0) or (name == "noise" and not value >= 0):
            least = "0 or above" if name == "noise" else "above 0"
            raise OptionError(name, f"{value} is out of range", f"Give a number {least}.")
        if name == "seed":
            check_seed(name, value)
    return kind(**given) if kind else None
