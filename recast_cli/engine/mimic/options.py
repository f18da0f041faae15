"""How a base is made: layout, solver and size; plain values, so that they can be known and checked without torch."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from recast_cli.engine.errors import OptionError, RecastError, option
from recast_cli.engine.layout.families import Modules
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.layout.plan import BUDGET, plan_layout
from recast_cli.engine.mimic.decompose.solver_options import DTYPES, SolverOptions, solver_options
from recast_cli.engine.units import parse_bytes

HALF = 16
"""`bits` of float16."""


@dataclass(frozen=True)
class MimicOptions:
    """What `make_base` is told beside the source; the defaults are exact and need no images.

    Attributes:
        layout: A published layout, one of PAPER_LAYOUTS; None: `modules` and the next three, or the tool's own pick.
        modules: Shell-style patterns of module names, e.g. `blocks.*.mlp.fc1`.
        groups: G, counted per role and shape; None: pairs of neighbours.
        templates: n; None: the number of layers in each group, which is exact.
        sets: K; None: 2 where that fits the budget, else 1.
        budget: The largest number of coefficients that the tool picks by itself.
        solver: `exact`, `gradient` or `vae`. The next six belong to the latter two; None is the recipe's own value.
        loss: `smooth-l1` or `mse`.
        noise: Standard deviation of the noise on coefficients, of `gradient`.
        steps: Descent steps a bank.
        lr: Learning rate at the start.
        seed: Of templates, coefficients and noise.
        kl: Whether `vae` samples, with the KL term.
        dtype: Stored type of the templates, one of DTYPES.
        size: Most bytes of the file: a number, a text like `6MB`, or `4x`, a quarter of the source's tensors.
        bits: Of every weight, instead of a size: 2 to 8, or 16 for float16.
        group_size: Weights that share a scale, with `bits`; None: 64.

    Raises:
        RecastError: A value is unknown or out of range, or two do not go together.
    """

    layout: str | None = None
    modules: tuple[str, ...] = ()
    groups: int | None = None
    templates: int | None = None
    sets: int | None = None
    budget: int = BUDGET
    solver: str = "exact"
    loss: str | None = None
    noise: float | None = None
    steps: int | None = None
    lr: float | None = None
    seed: int | None = None
    kl: bool | None = None
    dtype: str = "float32"
    size: int | str | None = None
    bits: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        _ = self.recipe  # what is wrong with the solver is raised here
        if self.dtype not in DTYPES:
            raise OptionError("dtype", f"{self.dtype} is unknown", f"Use {', '.join(DTYPES)}.")
        if self.compresses and self.dtype != "float32":
            what = f"{self.dtype} does not go with {option('size')} and {option('bits')}"
            raise OptionError("dtype", what, f"Leave it out; {option('bits', HALF)} is float16.")
        check_numbers(self.size, self.bits, self.group_size)
        self.most_bytes(0)

    @cached_property
    def recipe(self) -> SolverOptions:
        """The solver's recipe; None of the exact one."""
        given = {name: getattr(self, name) for name in ("loss", "noise", "steps", "lr", "seed")}
        return solver_options(self.solver, **given, kl=self.kl or None)

    @property
    def compresses(self) -> bool:
        """Whether tensors are stored in fewer bits."""
        return any(value is not None for value in (self.size, self.bits, self.group_size))

    def plan(self, modules: Modules) -> Layout:
        """The layout of a network with these modules. Raises RecastError as `plan_layout` does."""
        given = {name: getattr(self, name) for name in ("layout", "groups", "templates", "sets", "budget")}
        try:
            return plan_layout(modules, patterns=self.modules, **given)
        except RecastError as error:
            raise error.renamed("patterns", "modules") from None

    def most_bytes(self, source: int) -> int | None:
        """The bytes that `size` means for a source of so many; None where no size is given."""
        text = str(self.size).strip().lower()
        if self.size is None:
            return None
        if (times := re.fullmatch(r"([0-9]*\.?[0-9]+) *x", text)) and float(times[1]) > 0:
            return int(source / float(times[1]))
        found = parse_bytes(text)
        if not found:
            raise OptionError("size", f"{self.size} is not a size", "Give e.g. 4x (of the source) or 6MB.")
        if isinstance(self.size, str) and found < 1000 and text.replace(".", "", 1).isdigit():
            raise OptionError("size", f"{self.size} has no unit", f"Write {text}x or {text}MB.")
        return found

    def check_images(self, calibrate: Path | None, heal: Path | None) -> None:
        """Raise RecastError where folders of images do not go with the size that is wanted."""
        sizes = f"{option('size')} or {option('bits')}"
        if calibrate is not None and not self.compresses:
            raise OptionError("calibrate", "decides how weights are rounded", f"Give {sizes}, too, or leave it out.")
        if heal is not None and self.compresses and calibrate is None:
            raise OptionError("heal", f"with {sizes} needs {option('calibrate')}", "The same folder will do.")


def check_numbers(size: int | str | None, bits: int | None, group: int | None, name: str = "group_size") -> None:
    """Raise RecastError where size, bits and weights a scale, which the caller knows by `name`, make no plan."""
    if size is not None and bits is not None:
        raise OptionError("size", "chooses the bits itself", f"Give {option('size')} or {option('bits')}, not both.")
    if bits is not None and bits not in (*range(2, 9), HALF):
        raise OptionError("bits", f"{bits} is out of range", "Give 2 to 8, or 16 for float16.")
    if group is not None and not 8 <= group <= 4096:
        raise OptionError(name, f"{group} is out of range", "Give 8 to 4096 values a scale; 64 is usual.")
    if group is not None and bits in (None, HALF):
        hint = f"Give {option('bits')}, too, or leave it out."
        raise OptionError(name, f"goes with {option('bits')} of 2 to 8", hint)
