"""Attach a base to a network: the weights of its modules become mixtures, their coefficients the only parameters."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.architecture.build import build
from recast_cli.engine.base.base import Base
from recast_cli.engine.base.mixture import mix
from recast_cli.engine.model.adapters.adapter import Adapter, add_learned


class Templates(nn.Module):
    """The templates of one bank, one child shared by all its mixtures, so that `.to(device)` moves them once."""

    def __init__(self, templates: Tensor) -> None:
        super().__init__()
        self.register_buffer("tensor", templates, persistent=False)


class Mixture(nn.Module):
    """Parametrization that makes a weight of shape (*shape) out of coefficients (K, n)."""

    def __init__(self, templates: Templates, means: bool = False) -> None:
        super().__init__()
        self.templates, self.means = templates, means

    def forward(self, coefficients: Tensor) -> Tensor:
        """Equation 1; see `mix`."""
        # bfloat16 has 8 bits: under autocast a coefficient near 1 could not move by less than 1/128
        with torch.autocast(coefficients.device.type, enabled=False):
            return mix(coefficients, self.templates.get_buffer("tensor"), self.means)


def attach(base: Base, vector: Tensor | None = None, image_size: int | None = None) -> nn.Module:
    """The base's network with mixtures for weights, in eval mode, all but the coefficients frozen.

    Each module of the layout keeps its coefficients (K, n) as the parameter `parametrizations.weight.original`.

    Args:
        base: A base whose architecture is known.
        vector: Coefficients in layout order; default: the mimicked ones.
        image_size: In pixels; default: the network's own.

    Raises:
        RecastError: The architecture is unknown, or its weights fix the image size.
    """
    vector = base.vector if vector is None else vector
    model = build(base.known_architecture(), base.state(vector), image_size).requires_grad_(False)
    places = base.layout.slices()
    for bank in base.layout.banks:
        templates = Templates(base.templates(bank))
        for name in bank.modules:
            module = model.get_submodule(name)
            place, shape = places[name]
            module.weight = nn.Parameter(vector[place].reshape(shape).clone())
            # unsafe: the parametrization changes the shape, from coefficients to a weight
            parametrize.register_parametrization(module, "weight", Mixture(templates, bank.means), unsafe=True)
    return model.eval()


def merge(
    base: Base,
    vector: Tensor | None = None,
    image_size: int | None = None,
    adapter: Adapter | None = None,
    places: Tensor | None = None,
) -> nn.Module:
    """The same network with plain merged weights, in eval mode: nothing of RECAST is left in it.

    Args:
        base: As of `attach`, like the next two.
        vector: As of `attach`.
        image_size: As of `attach`.
        adapter: Of a task that has one. What it changes of weights is merged, too; AdaptFormer and CLR stay beside.
        places: (k, 2), of a task that chose entries, `vector` (m + k,): see `Base.split`.

    Raises:
        RecastError: As of `attach`, or a place is not in the base.

    Example:
        >>> model = merge(base, task.vector, task.image_size)
        >>> model.forward_features(torch.zeros(1, 3, 32, 32)).shape  # a ViT of 4 x 4 patches, 32 channels
        torch.Size([1, 17, 32])
    """
    model = build(base.known_architecture(), base.state(vector, places), image_size).requires_grad_(False)
    if adapter is not None:
        add_learned(model, adapter)
    return model


def coefficient_parameters(model: nn.Module, base: Base) -> list[nn.Parameter]:
    """The coefficients (K, n) of every module of an attached model, in layout order."""
    return [model.get_parameter(f"{name}.parametrizations.weight.original") for name in base.layout.modules]
