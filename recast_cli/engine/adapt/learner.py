"""The network that a task is learned with: coefficients, an adapter, or both joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recast_cli.engine.adapt.fit import start_state
from recast_cli.engine.adapt.importance import squared_gradients
from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.adapt.loop import Part
from recast_cli.engine.adapt.state import State
from recast_cli.engine.base.base import Base
from recast_cli.engine.images.decode import Images
from recast_cli.engine.model.adapters.adapter import Adapter, Installed
from recast_cli.engine.model.attach import attach, coefficient_parameters, merge
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.task.options import AdaptOptions


class Learner(NamedTuple):
    """A network with what is trained of it: coefficients (K, n) in layout order, and an adapter."""

    model: nn.Module
    coefficients: list[nn.Parameter]
    adapter: Installed | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained beside the head."""
        return [*self.coefficients, *(self.adapter.parameters.values() if self.adapter else ())]

    def parts(self, options: AdaptOptions) -> list[Part]:
        """`parameters` with their learning rates."""
        parts = []
        if self.coefficients:
            assert options.lr is not None
            parts.append(Part(self.coefficients, options.lr))
        if self.adapter:
            assert options.adapter_lr is not None
            parts.append(Part([*self.adapter.parameters.values()], options.adapter_lr))
        return parts

    def described(self) -> dict[str, Any]:
        """What a record says of what is trained: `coefficients`, and of `adapter` its name, options and `floats`."""
        adapter = self.adapter
        return {
            "coefficients": sum(parameter.numel() for parameter in self.coefficients),
            "adapter": adapter and {"name": adapter.name, "options": adapter.options, "floats": adapter.floats},
        }

    def learned(self, values: Sequence[Tensor], vector: Tensor) -> tuple[Tensor, Adapter | None]:
        """The vector and the adapter of a task, from values of `parameters`; `vector` is the base's own."""
        count = len(self.coefficients)
        if count:
            vector = torch.cat([tensor.reshape(-1) for tensor in values[:count]])
        return vector, self.adapter.learned([*values[count:]]) if self.adapter else None


def make_learner(base: Base, options: AdaptOptions, device: torch.device) -> Learner:
    """The network of a base on its device, as it computes before anything is learned.

    Raises:
        RecastError: The network has no place for this adapter, or does not take images of this size.
    """
    if options.coefficients:
        model = ready(attach(base, image_size=options.image_size), device)
        coefficients = coefficient_parameters(model, base)
    else:
        model, coefficients = ready(merge(base, image_size=options.image_size), device), []
    adapter = None
    if options.adapter:
        given = {"rank": options.rank, "density": options.density, "seed": options.seed}
        adapter = Installed(model, options.adapter, given)
    return Learner(model, coefficients, adapter)


def begin(learner: Learner, base: Base, options: AdaptOptions, images: Images, probe: Probe) -> State:
    """Epoch 0. An adapter that is sparse changes the entries that matter most to the linear probe.

    Args:
        learner: On its device.
        base: Its source's weights are looked at.
        options: Of the task.
        images: Of training.
        probe: The head.
    """
    device = next(learner.model.parameters()).device

    def importance(names: list[str]) -> dict[str, Tensor]:
        plain = ready(merge(base, image_size=options.image_size), device)
        preprocessing = base.known_architecture().preprocessing
        return squared_gradients(plain, names, images, probe.head, preprocessing, options.seed)

    fixed = None
    if learner.adapter:
        learner.adapter.choose(importance)
        fixed = learner.adapter.fixed
    return start_state(learner.parameters, probe, options, fixed)
