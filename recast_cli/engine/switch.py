"""Switch a loaded base from task to task: the weights W are written in place, in about the time of a copy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine.adapters import Adapter
from recast_cli.engine.attach import merge
from recast_cli.engine.base import Base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout import Bank
from recast_cli.engine.mixture import averaged
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
        self.stacks = [Stack(base, banks, self.device) for banks in alike.values()]
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
        vector = vector.detach().cpu()
        for stack in self.stacks:
            stack.write(vector)
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

    Attributes:
        weights: Name of each weight -> its view (*shape) of `mixed`, which holds all of them.
    """

    def __init__(self, base: Base, banks: list[Bank], device: torch.device) -> None:
        self.templates = torch.stack([base.templates(bank).flatten(1) for bank in banks]).to(device)  # (B, n, numel)
        places, first = base.layout.slices(), banks[0]
        self.means = first.means
        shape = (len(first.modules), base.layout.sets, first.templates)
        starts = torch.tensor([places[bank.modules[0]][0].start for bank in banks])
        # where the coefficients of every module stand in the vector: (B, layers, K, n)
        self.places = (starts[:, None] + torch.arange(math.prod(shape))).view(-1, *shape)
        self.mixed = torch.empty(len(banks), shape[0], first.numel, device=device)  # (B, layers, numel)
        self.weights = {
            f"{module}.weight": weight.view(bank.shape)
            for bank, rows in zip(banks, self.mixed, strict=True)
            for module, weight in zip(bank.modules, rows, strict=True)
        }

    def write(self, vector: Tensor) -> None:
        """Equation 1 for every module of the stack, as one product that leaves nothing to be copied."""
        coefficients = averaged(vector.take(self.places), self.means).to(self.mixed.device)  # (B, layers, n)
        if coefficients.shape[-1] == 1:  # nothing to sum, and what only scales is no slower than a copy
            torch.mul(coefficients, self.templates, out=self.mixed)
            return
        for part in batches(self.mixed.shape[-1], COLUMNS):
            torch.bmm(coefficients, self.templates[..., part], out=self.mixed[..., part])
