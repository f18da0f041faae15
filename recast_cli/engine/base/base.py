"""The base: banks, mimicked coefficients and everything else of the source, in one safetensors file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from recast_cli.engine.base.chosen import add_entries, check_count, check_places, dictionary
from recast_cli.engine.base.codec.code import Code
from recast_cli.engine.base.header import BaseHeader
from recast_cli.engine.base.mixture import mix, with_means
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.layout import Bank, Layout, coefficient_key, template_key
from recast_cli.engine.storage.digest import Hashed, digest
from recast_cli.engine.storage.header import FLOATS
from recast_cli.engine.storage.tensors import TYPE_NAMES, Spec, specs


@dataclass(frozen=True, kw_only=True)
class Base(BaseHeader):
    """A mimicked source.

    Attributes:
        tensors: `banks.<bank>.templates` (bank.stored, *shape), `coefficients.<module>` (K, n), all else of the source;
            those that `codes` names as they are stored. Those of a base that `mimic` has just written are read from its
            file whenever they are asked for.
        codes: Name of a tensor -> how it is stored; of a base that is not compressed empty.
    """

    tensors: Mapping[str, Tensor]
    codes: dict[str, Code] = field(default_factory=dict)

    def value(self, name: str) -> Tensor:
        """A tensor by name; one that is stored in a code is decoded, to float32."""
        code = self.codes.get(name)
        return self.tensors[name] if code is None else code.decode(name, self.tensors)

    def stored(self, bank: Bank) -> Tensor:
        """What the file holds of a bank, (bank.stored, *shape), in float32, whatever type it is stored in."""
        return self.value(template_key(bank)).float()

    def templates(self, bank: Bank) -> Tensor:
        """What `mix` takes of a bank: (n, *shape), float32. Of one with `means` that is each kernel, and its mean."""
        return with_means(self.stored(bank)) if bank.means else self.stored(bank)

    def coefficients(self, module: str) -> Tensor:
        """(K, n), float32."""
        return self.tensors[coefficient_key(module)]

    @cached_property
    def vector(self) -> Tensor:
        """All mimicked coefficients in layout order: (layout.coefficients,), float32."""
        return torch.cat([self.coefficients(module).reshape(-1) for module in self.layout.modules])

    @cached_property
    def rest(self) -> dict[str, Tensor]:
        """Everything of the source that is not reparameterised, under its own name."""
        return {name: self.value(name) for name in self.rest_specs}

    @cached_property
    def rest_specs(self) -> dict[str, Spec]:
        """Types and shapes of `rest`; none is read for it."""
        ours = {*map(template_key, self.layout.banks), *map(coefficient_key, self.layout.modules)}
        return {name: spec for name, spec in self.specs.items() if name not in ours}

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Types and shapes of all tensors as `value` gives them, none of which is decoded for it."""
        stored = {part for name, code in self.codes.items() for part in code.specs(name)}
        plain = {name: spec for name, spec in specs(self.tensors).items() if name not in stored}
        return plain | {name: Spec(torch.float32, code.shape) for name, code in self.codes.items()}

    @cached_property
    def entries(self) -> dict[str, int]:
        """The vectors that a task may choose coefficients from, in the order that `places` counts: name -> entries."""
        shapes = {name: spec.shape for name, spec in self.rest_specs.items() if TYPE_NAMES[spec.dtype] in FLOATS}
        return dictionary(shapes, self.architecture)

    def split(self, vector: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The coefficients of a task in layout order, and what it adds to the entries that it chose.

        Args:
            vector: (layout.coefficients,), the coefficients; with places (m + k,), what is added to them and entries.
            places: (k, 2), where the task chose entries.

        Returns:
            (layout.coefficients,), and (k,) or None.

        Raises:
            RecastError: A place is not in the base, or named twice, or the vector is of another length.

        Example:
            >>> coefficients, added = base.split(task.vector, task.places)
            >>> coefficients.shape, added
            (torch.Size([48]), None)
        """
        own = self.vector.to(vector.device)
        if places is None:
            if vector.shape != own.shape:
                what = f"The vector has shape {tuple(vector.shape)}, the base wants {tuple(own.shape)}"
                raise RecastError(what, "Give the vector of a task of this base, and its places where it has some.")
            return vector, None
        check_places(places.tolist(), self.entries, "the task")
        of_layout, added = vector[: len(vector) - len(places)], vector[len(vector) - len(places) :]
        check_count(len(of_layout), self.layout, "the task")
        if len(of_layout):
            own = own + of_layout.repeat_interleave(len(own) // len(of_layout))
        return own, added

    def state(self, vector: Tensor | None = None, places: Tensor | None = None) -> dict[str, Tensor]:
        """The merged state dict: plain weights W under the source's own names.

        Args:
            vector: Coefficients of a task in layout order; default: the mimicked ones.
            places: (k, 2), where the task chose entries: `vector` (m + k,) is then what is added, see `split`.

        Returns:
            Name -> tensor; what is not changed is the base's own tensor, not a copy.

        Raises:
            RecastError: As of `split`.
        """
        vector, added = self.split(self.vector if vector is None else vector, places)
        slices = self.layout.slices()
        state = dict(self.rest)
        if added is not None and places is not None:
            state |= add_entries(state, [*self.entries], places, added)
        for bank in self.layout.banks:
            templates = self.templates(bank)
            for module in bank.modules:
                place, shape = slices[module]
                state[f"{module}.weight"] = mix(vector[place].reshape(shape), templates, bank.means)
        return state | {alias: state[name] for alias, name in self.aliases.items()}

    @property
    def source_parameters(self) -> int:
        """Scalars of the source, as `parameters` counts them."""
        layout = self.layout
        stood_for = layout.source_parameters - layout.template_parameters - layout.coefficients
        return parameters(self.specs) + stood_for

    def mimicked(self) -> list[float]:
        """`vector` as plain numbers."""
        return [*self.vector.tolist()]


def base_of(header: BaseHeader, tensors: Mapping[str, Tensor], codes: Mapping[str, Code]) -> Base:
    """A base of what was known of it before, and its tensors."""
    return Base(**vars(header), tensors=tensors, codes=dict(codes))


def shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the stored tensors of a layout: templates (n, *shape), coefficients (K, n)."""
    templates = {template_key(bank): (bank.stored, *bank.shape) for bank in layout.banks}
    return templates | {coefficient_key(module): shape for module, (_, shape) in layout.slices().items()}


def identify(layout: Layout, tensors: Mapping[str, Hashed], codes: Mapping[str, Code] | None = None) -> str:
    """The base_id: 32 hexadecimal digits of a digest of layout, codes and stored tensors.

    A bank that is not quantised has one part a template. Without codes the digest is that of layout and tensors.
    """
    extra = layout.to_dict() | ({"codes": plain_codes(codes)} if codes else {})
    return digest(tensors, extra).removeprefix("sha256:")[:32]


def plain_codes(codes: Mapping[str, Code]) -> dict[str, Any]:
    """The codes of a base as metadata."""
    return {name: asdict(code) for name, code in codes.items()}


def parameters(tensors: Mapping[str, Spec]) -> int:
    """Scalars in all floating-point tensors but the running statistics of batch norm."""
    return sum(
        spec.numel
        for name, spec in tensors.items()
        if spec.dtype.is_floating_point and not name.endswith(("running_mean", "running_var"))
    )
