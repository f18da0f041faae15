"""Switch a loaded base from task to task: the weights W are written in place, in about the time of a copy."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine.base.base import Base
from recast_cli.engine.base.chosen import add_entries
from recast_cli.engine.layout.layout import Bank
from recast_cli.engine.model.adapters.adapter import Adapter
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.entries import vector_of
from recast_cli.engine.runtime.device import choose_device, ready

SHORTEST = 16
"""Scalars of a row at least, so that a product is not made row by row: sizes without this divisor go by themselves."""


class Switcher:
    """A base as a plain merged network that goes from task to task.

    The network is the one that `merge` builds; only the weights of the layout's modules are ever written. There is
    one for each image size asked for, and all of them read the same weights, so they always hold the same task.
    Leave them on their device and in their type; `copy.deepcopy(model)` keeps a task for good.

    Args:
        base: A base whose architecture is known.
        device: cpu, cuda, …; default: CUDA where it is.

    Raises:
        RecastError: The architecture is unknown, or there is no such device.

    Example:
        >>> switcher = Switcher(base)
        >>> images = torch.zeros(1, 3, 32, 32, device=switcher.device)
        >>> for vector in (base.vector, task.vector):
        ...     switcher.switch(vector)(images).shape  # the source's own classes
        torch.Size([1, 5])
        torch.Size([1, 5])
    """

    def __init__(self, base: Base, device: str | None = None) -> None:
        self.base = base
        self.image_size = base.known_architecture().image_size
        self.device = choose_device(device)
        alike: dict[tuple[Any, ...], list[Bank]] = {}
        for bank in base.layout.banks:
            layers = len(bank.modules)
            size = bank.numel if layers > 1 or bank.numel % SHORTEST else None
            alike.setdefault((layers, bank.templates, bank.means, size), []).append(bank)
        self.stacks = [Stack(base, banks, self.device) for banks in alike.values()]
        self.networks: dict[int, nn.Module] = {}
        self.changed: set[str] = set()

    def switch(
        self,
        vector: Tensor,
        image_size: int | None = None,
        adapter: Adapter | None = None,
        places: Tensor | None = None,
    ) -> nn.Module:
        """Write the weights of a task and return the network, in eval mode.

        Args:
            vector: Coefficients in layout order, (layout.coefficients,) on any device.
            image_size: In pixels; default: the network's own.
            adapter: Of a task that has one. It changes more than the layout's weights, so it gets a network of its own,
                which takes as long as `merge`.
            places: (k, 2), of a task that chose entries, `vector` (m + k,): see `Base.split`.

        Raises:
            RecastError: `vector` is of another length, a place is not in the base, or the network does not take this
                image size.
        """
        vector = vector.detach().to(self.device, torch.float32)
        moved, added = self.base.split(vector, places)
        if adapter is not None:
            return ready(merge(self.base, vector, image_size, adapter, places), self.device)
        size = image_size or self.image_size
        if size not in self.networks:
            self.networks[size] = self.build(size)
        for stack in self.stacks:
            stack.write(moved)
        self.change_entries(added, places)
        return self.networks[size]

    @torch.no_grad()
    def change_entries(self, added: Tensor | None, places: Tensor | None) -> None:
        """Let the networks have a task's chosen entries, and none of the task before."""
        if places is None and not self.changed:
            return
        rest, names = self.base.rest, [*self.base.entries]
        changed = {} if added is None or places is None else add_entries(rest, names, places, added.cpu())
        for name in self.changed | changed.keys():
            for network in self.networks.values():
                vector_of(network, name).copy_(changed.get(name, rest[name]))
        self.changed = {*changed}

    def build(self, size: int) -> nn.Module:
        """The merged network for images of `size` pixels, reading the weights of the stacks."""
        model = ready(merge(self.base, image_size=size), self.device)
        for stack in self.stacks:
            for name, weight in stack.weights.items():
                model.get_parameter(name).data = weight
        return model


class Stack:
    """Banks with equally many layers and templates, cut in rows of equally many scalars.

    Their weights lie in one tensor, which a call or two write: on small networks calls are what a switch takes. If
    several layers share a bank, all banks are of one size.

    Attributes:
        weights: Name of each weight -> its view (*shape) of that tensor.
    """

    def __init__(self, base: Base, banks: list[Bank], device: torch.device) -> None:
        layers, n = len(banks[0].modules), banks[0].templates
        row = math.gcd(*(bank.numel for bank in banks))
        heights = [bank.numel // row for bank in banks]
        # (all rows, n, length of a row) and (all rows, layers, length of a row)
        templates, mixed = (torch.empty(sum(heights), count, row, device=device) for count in (n, layers))
        places, self.weights = [], {}
        slices = base.layout.slices()
        for bank, own, target in zip(banks, templates.split(heights), mixed.split(heights), strict=True):
            own.copy_(base.templates(bank).view(n, -1, row).transpose(0, 1))
            for module, weight in zip(bank.modules, target.unbind(1), strict=True):
                self.weights[f"{module}.weight"] = weight.view(bank.shape)
            found = (slices[module] for module in bank.modules)
            own_places = torch.stack([torch.arange(place.start, place.stop).view(shape) for place, shape in found], 1)
            places.append(own_places.unsqueeze(1).expand(-1, len(own), -1, -1))

        # where what counts in a row stands in a task's vector: (K, rows, layers, n)
        self.places = torch.cat(places, 1).to(device)
        self.sets = torch.empty(self.places.shape, device=device)
        self.counts = torch.empty_like(self.sets[0]) if len(self.sets) > 1 else self.sets[0]
        self.templates, self.mixed = templates, mixed
        # views are cut here, as each takes as long as a small copy
        self.cut = self.counts.chunk(2, -1) if banks[0].means else None
        self.terms = [(self.counts[..., i, None], templates[:, i, None]) for i in range(n)]
        self.shared = layers > 1 and n > 1

    def write(self, vector: Tensor) -> None:
        """Equation 1 for every module of the stack by a task's vector, float32 on the device of the weights.

        Nothing is copied: products go where the weights lie.
        """
        torch.take(vector, self.places, out=self.sets)
        if len(self.sets) > 1:
            torch.mean(self.sets, 0, out=self.counts)
        if self.cut:  # what `uncut` does, without a copy
            rest, mean = self.cut
            mean.sub_(rest)
        if self.shared:
            torch.bmm(self.counts, self.templates, out=self.mixed)
            return
        first, *others = self.terms
        torch.mul(*first, out=self.mixed)  # what only scales is no slower than a copy
        for counts, templates in others:
            self.mixed.addcmul_(counts, templates)
