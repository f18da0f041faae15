"""Switch a loaded base from task to task: the weights W are written in place, in about the time of a copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine.adapters import Adapter
from recast_cli.engine.attach import merge
from recast_cli.engine.base import Base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout import Bank
from recast_cli.engine.run import batches, choose_device, ready

COLUMNS = 2**18
"""Scalars of each weight written at a time: few enough for the cache, as every layer reads the templates again."""


class Switcher:
    """A base as a plain merged network that goes from task to task.

        switcher = Switcher(base)
        for task in tasks:
            model = switcher.switch(task.vector, task.image_size)

    The network is the one that `merge` builds; only the weights of the layout's modules are ever written. There is
    one for each image size asked for, and all of them read the same weights, so they always hold the same task.
    Leave them on their device and in their type; `copy.deepcopy(model)` keeps a task for good.

    Args:
        base: A base whose architecture is known.
        device: cpu, cuda, …; default: CUDA where it is.

    Raises:
        RecastError: The architecture is unknown, or there is no such device.
    """

    def __init__(self, base: Base, device: str | None = None) -> None:
        self.base = base
        self.image_size = base.known_architecture().image_size
        self.device = choose_device(device)
        alike: dict[tuple[Any, ...], list[Bank]] = {}
        for bank in base.layout.banks:
            alike.setdefault((len(bank.modules), bank.templates, bank.numel, bank.means), []).append(bank)
        slices = base.layout.slices()
        order = [[slices[module] for bank in banks for module in bank.modules] for banks in alike.values()]
        # where each set of coefficients stands in a task's vector, stack by stack: (K, layers and templates of all)
        self.places = torch.cat(
            [torch.arange(place.start, place.stop).view(shape) for modules in order for place, shape in modules], 1
        )
        self.counts = torch.empty(self.places.shape[1], device=self.device)
        parts = self.counts.split([sum(shape[1] for _, shape in modules) for modules in order])
        self.stacks = [Stack(base, banks, counts) for banks, counts in zip(alike.values(), parts, strict=True)]
        self.networks: dict[int, nn.Module] = {}

    def switch(self, vector: Tensor, image_size: int | None = None, adapter: Adapter | None = None) -> nn.Module:
        """Write the weights of a task and return the network, in eval mode.

        Args:
            vector: Coefficients in layout order, (layout.coefficients,) on any device.
            image_size: In pixels; default: the network's own.
            adapter: Of a task that has one. It changes more than the layout's weights, so it gets a network of its own,
                which takes as long as `merge`.

        Raises:
            RecastError: `vector` is of another length, or the network does not take this image size.
        """
        if vector.shape != self.base.vector.shape:
            raise RecastError(
                f"The vector has shape {tuple(vector.shape)}, the base wants {tuple(self.base.vector.shape)}",
                "Give the vector of a task of this base.",
            )
        if adapter is not None:
            return ready(merge(self.base, vector, image_size, adapter), self.device)
        size = image_size or self.image_size
        if size not in self.networks:
            self.networks[size] = self.build(size)
        self.counts.copy_(vector.detach().cpu().take(self.places).mean(0))
        for stack in self.stacks:
            stack.write()
        return self.networks[size]

    def build(self, size: int) -> nn.Module:
        """The merged network for images of `size` pixels, reading the weights of the stacks."""
        model = ready(merge(self.base, image_size=size), self.device)
        for stack in self.stacks:
            for name, weight in stack.weights.items():
                model.get_parameter(name).data = weight
        return model


class Stack:
    """All banks with the same numbers of layers, templates and scalars: one product writes their weights.

    Args:
        base: What they are banks of.
        banks: They.
        counts: What each of their templates counts in each of their layers, the sets averaged, (B * layers * n,) on the
            device of the weights. They change from task to task.

    Attributes:
        weights: Name of each weight -> its view (*shape) of one tensor, which holds all of them.
    """

    def __init__(self, base: Base, banks: list[Bank], counts: Tensor) -> None:
        first = banks[0]
        templates = torch.stack([base.templates(bank).flatten(1) for bank in banks]).to(counts.device)
        mixed = torch.empty(len(banks), len(first.modules), first.numel, device=counts.device)
        self.counts = counts.view(len(banks), len(first.modules), first.templates)
        self.cut = self.counts.chunk(2, -1) if first.means else None
        columns = COLUMNS if first.templates > 1 else first.numel
        self.parts = [(templates[..., part], mixed[..., part]) for part in batches(first.numel, columns)]
        self.weights = {
            f"{module}.weight": weight.view(bank.shape)
            for bank, rows in zip(banks, mixed, strict=True)
            for module, weight in zip(bank.modules, rows, strict=True)
        }

    def write(self) -> None:
        """Equation 1 for every module of the stack, as products that leave nothing to be copied."""
        if self.cut:  # what `uncut` does, without a copy
            rest, mean = self.cut
            mean.sub_(rest)
        for templates, mixed in self.parts:
            if self.counts.shape[-1] == 1:  # nothing to sum, and what only scales is no slower than a copy
                torch.mul(self.counts, templates, out=mixed)
            else:
                torch.bmm(self.counts, templates, out=mixed)
