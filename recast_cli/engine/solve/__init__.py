"""Neural Mimicry: from the source weights of one bank to templates and coefficients.

Each solver maps weights (layers, *shape) to a `Solution`: templates (n, *shape) and coefficients (layers, K, n).
"""

from recast_cli.engine.mimic.decompose.exact import solve_exact
from recast_cli.engine.mimic.decompose.gradient import GradientOptions, solve_gradient
from recast_cli.engine.mimic.decompose.solution import Solution
from recast_cli.engine.mimic.decompose.solver_options import SolverOptions, solver_options
from recast_cli.engine.mimic.decompose.vae import VaeOptions, solve_vae

__all__ = [
    "GradientOptions",
    "Solution",
    "SolverOptions",
    "VaeOptions",
    "solve_exact",
    "solve_gradient",
    "solve_vae",
    "solver_options",
]
