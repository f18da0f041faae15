"""Layout: which modules are in which bank, with n and K. Everything about a decomposition but the numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from recast_cli.engine.errors import DamagedFile


@dataclass(frozen=True)
class Bank:
    """The templates that one group of modules shares.

    Attributes:
        name: Unique name, e.g. `blocks.0-1.attn.qkv`.
        role: What the modules are, e.g. `blocks.*.attn.qkv`.
        group: Number of the group among those of its role and shape, from 1 (g = ceil(l*G/L)).
        modules: Names of the modules in order of depth.
        shape: Shape of each weight and of each template.
        templates: n, how many templates a weight is mixed of.
        means: Whether the file holds n/2 kernels, each of which is cut into two templates: what is left of it beside
            its mean over the window, and that mean (see `uncut` in base/mixture.py).
    """

    name: str
    role: str
    group: int
    modules: tuple[str, ...]
    shape: tuple[int, ...]
    templates: int
    means: bool = False

    @property
    def stored(self) -> int:
        """How many tensors of the module's shape the file holds."""
        return self.templates // 2 if self.means else self.templates

    @property
    def exact(self) -> bool:
        """True where there is a stored template for each layer: any source weights can be represented."""
        return self.stored == len(self.modules)

    @property
    def numel(self) -> int:
        """Scalars in one weight (d*d for a square linear layer)."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Banks in order of depth, and K coefficient sets for every module.

    The coefficients of a task are one vector in layout order: bank by bank, module by module, set by set,
    template by template.
    """

    name: str
    sets: int
    banks: tuple[Bank, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of all modules in layout order."""
        return tuple(module for bank in self.banks for module in bank.modules)

    @property
    def coefficients(self) -> int:
        """Number of coefficients: sum over modules of n*K."""
        return sum(len(bank.modules) * bank.templates * self.sets for bank in self.banks)

    @property
    def alike(self) -> bool:
        """Whether every module has one coefficient, and a neighbour."""
        return self.coefficients == len(self.modules) and self.coefficients % 2 == 0

    @property
    def degrees_of_freedom(self) -> int:
        """Rank of the map coefficients -> weights: K sets average linearly, so n per module."""
        return sum(len(bank.modules) * bank.templates for bank in self.banks)

    @property
    def template_parameters(self) -> int:
        """Scalars in all templates as they are stored: sum over banks of `stored` * numel."""
        return sum(bank.stored * bank.numel for bank in self.banks)

    @property
    def source_parameters(self) -> int:
        """Scalars in the weights that the templates stand for: sum over modules of numel."""
        return sum(len(bank.modules) * bank.numel for bank in self.banks)

    @property
    def savings(self) -> int:
        """S = L*M*d^2 - (G*n*d^2*M + L*M*n*K): scalars saved; negative where an exact layout adds coefficients."""
        return self.source_parameters - (self.template_parameters + self.coefficients)

    @property
    def means(self) -> bool:
        """Whether kernels of any bank are cut in two."""
        return any(bank.means for bank in self.banks)

    @property
    def roles(self) -> dict[tuple[str, tuple[int, ...]], list[Bank]]:
        """The banks of each role and shape, in order of the first."""
        found: dict[tuple[str, tuple[int, ...]], list[Bank]] = {}
        for bank in self.banks:
            found.setdefault((bank.role, bank.shape), []).append(bank)
        return found

    @property
    def groups(self) -> int:
        """G, the largest number of groups of one role and shape."""
        return max(map(len, self.roles.values()))

    @property
    def templates(self) -> int:
        """n, the largest number of templates in a bank."""
        return max(bank.templates for bank in self.banks)

    def slices(self) -> dict[str, tuple[slice, tuple[int, int]]]:
        """For each module, its place in the flat coefficient vector and its shape (K, n)."""
        places, start = {}, 0
        for bank in self.banks:
            for module in bank.modules:
                stop = start + self.sets * bank.templates
                places[module] = (slice(start, stop), (self.sets, bank.templates))
                start = stop
        return places

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        banks = []
        for bank in self.banks:
            found = asdict(bank) | {"modules": list(bank.modules), "shape": list(bank.shape)}
            if not bank.means:  # left out where there are none, so that older bases keep their id
                del found["means"]
            banks.append(found)
        return {"name": self.name, "sets": self.sets, "banks": banks}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Layout:
        """Inverse of `to_dict`. Raises DamagedFile where fields are missing or of the wrong type."""
        try:
            banks = tuple(
                Bank(
                    name=str(bank["name"]),
                    role=str(bank["role"]),
                    group=int(bank["group"]),
                    modules=tuple(bank["modules"]),
                    shape=tuple(int(size) for size in bank["shape"]),
                    templates=int(bank["templates"]),
                    means=bool(bank.get("means", False)),
                )
                for bank in value["banks"]
            )
            return cls(name=str(value["name"]), sets=int(value["sets"]), banks=banks)
        except (KeyError, TypeError, ValueError):
            raise DamagedFile("The layout in the file's metadata is damaged", "Run `recast mimic` again.") from None


def template_key(bank: Bank) -> str:
    """Name of a bank's tensor in the file."""
    return f"banks.{bank.name}.templates"


def coefficient_key(module: str) -> str:
    """Name of a module's coefficients in the file."""
    return f"coefficients.{module}"
