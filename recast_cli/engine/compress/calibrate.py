"""Round a base's tensors by what pictures make of them, layer after layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from recast_cli.engine.attach import merge
from recast_cli.engine.base import Base
from recast_cli.engine.compress.code import HALF, Code
from recast_cli.engine.compress.inputs import Inputs, groups_of, measurable, measure
from recast_cli.engine.compress.rounding import round_weights, shrunk
from recast_cli.engine.finish import finished
from recast_cli.engine.images import normalise
from recast_cli.engine.layout import Bank, template_key
from recast_cli.engine.mixture import mix
from recast_cli.engine.source import Source

Progress = Callable[[int, int, str], None]
MEMORY = 3 * 2**29
"""Bytes that the largest activations of all pictures may take, twice: once in the source, once rounded."""


@torch.no_grad()
def calibrate(
    source: Source, base: Base, codes: Mapping[str, Code], pixels: Tensor, progress: Progress | None = None
) -> Base:
    """Store the tensors of a base in their codes, rounded so that layers' outputs on pictures change little.

    The network runs once, all pictures at a time and each picture twice: as in the source, and through what has been
    rounded so far. When a layer is about to run, its inputs of both kinds are known, and its weight is rounded then,
    for the rounded inputs. The bias takes the difference of the mean outputs.

    Convolutions are unfolded; of grouped and depthwise ones every group has its own statistics. What is no plain linear
    layer or convolution (position embeddings, weights that are not used by calling their module) is rounded to the
    nearest before.

    Args:
        source: The source.
        base: Made in memory, without codes, and of a known architecture.
        codes: From `plan_codes`.
        pixels: (N, 3, H, W) uint8, without labels; as many as memory allows are used.
        progress: Called after every layer.

    Returns:
        The base with its tensors stored, a base_id of its own and the errors of its modules.
    """
    rounder = Rounder(base, dict(codes), merge(base), progress)
    rounder.run(pixels)
    tensors = {name: tensor for name, tensor in base.tensors.items() if name not in codes} | rounder.stored
    coded = replace(base, tensors=tensors, codes=dict(codes))
    return finished(coded, source)


@dataclass
class Rounder:
    """A network whose layers are rounded when they are first called.

    Attributes:
        base: Before rounding.
        codes: By tensor of the base.
        model: The base merged; its weights become the rounded ones.
        progress: Called after every layer.
        stored: What is stored of each tensor with a code, once `run` is through.
        pictures: How many are looked at.
        seen: Layers that were called.
        shared: By tensor of a shared bank and by layer: inputs, until all layers were called.
        parts: By tensor and number of the template: codes and scales, until all are there.
    """

    base: Base
    codes: dict[str, Code]
    model: nn.Module
    progress: Progress | None = None
    stored: dict[str, Tensor] = field(default_factory=dict)
    pictures: int = 0
    seen: set[str] = field(default_factory=set)
    shared: dict[str, dict[int, Inputs]] = field(default_factory=dict)
    parts: dict[str, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def run(self, pixels: Tensor) -> None:
        """Round everything that has a code, by these pictures."""
        homes = {module: (bank, place) for bank in self.base.layout.banks for place, module in enumerate(bank.modules)}
        layers: dict[str, nn.Module] = {}
        for name, module in self.model.named_modules():
            key = template_key(homes[name][0]) if name in homes else f"{name}.weight"
            if key in self.codes and self.codes[key].bits != HALF and measurable(module):
                layers[name] = module
        self.round_others({template_key(homes[n][0]) if n in homes else f"{n}.weight" for n in layers})
        data = self.base.known_architecture().data
        pictures = normalise(pixels[: self.limit(pixels, data)], data)
        self.pictures = len(pictures)
        for name, module in layers.items():
            self.watch(name, module, len(layers), homes.get(name))
        self.model(torch.cat([pictures, pictures]))
        left = {key for key in self.codes if not self.codes[key].specs(key).keys() <= self.stored.keys()}
        for key in left:  # layers that were never called, and vectors
            self.stored |= self.codes[key].encode(key, self.base.tensors[key])

    def round_others(self, called: set[str]) -> None:
        """Round to the nearest whatever no layer's call rounds; both kinds of inputs then come from it."""
        state = self.model.state_dict()
        for key, code in self.codes.items():
            if key not in called and code.numel and code.bits != HALF:
                self.stored |= code.encode(key, self.base.tensors[key])
                if key in state:
                    state[key].copy_(code.decode(key, self.stored))

    def limit(self, pixels: Tensor, data: dict[str, Any]) -> int:
        """How many pictures fit into memory, from the largest activation of the first one."""
        largest = pixels[0].numel()

        def look(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.numel())

        hooks = [module.register_forward_hook(look) for module in self.model.modules()]
        self.model(normalise(pixels[:1], data))
        for hook in hooks:
            hook.remove()
        return max(1, MEMORY // (8 * largest))

    def watch(self, name: str, module: nn.Module, total: int, home: tuple[Bank, int] | None) -> None:
        """Have `module` rounded when it is first called; its first half of a batch goes through its own old weight."""
        forward = type(module).forward

        def call(inputs: Tensor) -> Tensor:
            source, rounded = inputs.chunk(2)
            kept = forward(module, source)
            if name not in self.seen:  # a layer that is called several times is rounded by its first inputs
                self.seen.add(name)
                alone = home is None or template_of(self.base, *home) is not None
                seen = measure(module, source, rounded, centred=alone and self.corrected(name, module))
                self.round(name, module, seen, home)
                if self.progress:
                    self.progress(len(self.seen), total, f"rounding {name}")
            return torch.cat([kept, forward(module, rounded)])

        cast(Any, module).forward = call

    def round(self, name: str, module: nn.Module, seen: Inputs, home: tuple[Bank, int] | None) -> None:
        """Round the weight of a layer, or of its bank where that is shared and this is the last layer to be called."""
        if home is None:
            self.round_alone(name, module, seen, f"{name}.weight", 0, 1.0)
            return
        bank, place = home
        key = template_key(bank)
        number = template_of(self.base, bank, place)
        if number is not None:
            coefficient = float(self.base.coefficients(name).mean(0)[number])
            self.round_alone(name, module, seen, key, number, coefficient)
            return
        waiting = self.shared.setdefault(key, {})
        waiting[place] = seen
        if len(waiting) < len(bank.modules):
            return
        templates, weights = self.base.templates(bank), coefficients_of(self.base, bank)
        for number, template in enumerate(templates):
            # the cross products of templates are left out: each is rounded as if the others were exact
            hessian = sum(weights[row, number] ** 2 * waiting[row].products for row in range(len(bank.modules)))
            rows = template.reshape(groups_of(module), -1, self.codes[key].columns)
            template.copy_(
                self.keep(key, number, rows, shrunk(cast(Tensor, hessian), self.pictures)).view(template.shape)
            )
        for each in bank.modules:
            self.model.get_parameter(f"{each}.weight").copy_(mix(self.base.coefficients(each), templates))

    def round_alone(
        self, name: str, module: nn.Module, seen: Inputs, key: str, number: int, coefficient: float
    ) -> None:
        """Round a template, or a weight, that this layer alone uses, and have the bias take the difference of means."""
        weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
        rows = weight.reshape(groups_of(module), -1, weight[0].numel())
        hessian = shrunk(seen.products, self.pictures)
        kept = coefficient * self.keep(key, number, rows / coefficient, hessian)
        if bias is not None and self.corrected(name, module):
            bias += (rows @ seen.source[..., None] - kept @ seen.rounded[..., None]).flatten()
            code = self.codes.get(f"{name}.bias")
            self.stored |= code.encode(f"{name}.bias", bias) if code else {f"{name}.bias": bias.clone()}
        weight.copy_(kept.view(weight.shape))

    def corrected(self, name: str, module: nn.Module) -> bool:
        """Whether the layer has a bias of its own, which can take the difference of means."""
        return module.bias is not None and f"{name}.bias" in self.base.tensors

    def keep(self, key: str, number: int, rows: Tensor, hessian: Tensor) -> Tensor:
        """Round rows (G, rows, columns), which are template `number` of a tensor, and return what is left of them."""
        code = self.codes[key]
        codes, scales = round_weights(rows, hessian, code.grid)
        parts = self.parts.setdefault(key, {})
        parts[number] = codes.flatten(0, 1), scales.flatten(0, 1)
        count = code.rows // parts[number][0].shape[0]
        if len(parts) == count:
            first, second = (torch.cat([parts[place][kind] for place in range(count)]) for kind in (0, 1))
            self.stored |= code.store(key, first, second)
        return code.grid.decode(codes, scales)


def coefficients_of(base: Base, bank: Bank) -> Tensor:
    """What each module of a bank takes of each template: (layers, n)."""
    return torch.stack([base.coefficients(module).mean(0) for module in bank.modules])


def template_of(base: Base, bank: Bank, place: int) -> int | None:
    """Number of the one template that module `place` of a bank is made of, if no other module takes it, else None."""
    weights = coefficients_of(base, bank)
    own = weights[place].nonzero().flatten().tolist()
    return own[0] if len(own) == 1 and int((weights[:, own[0]] != 0).sum()) == 1 else None
