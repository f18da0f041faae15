"""Coefficient gradients the cheap way: for training, an attached module's forward is replaced by an equivalent one.

A module computes Y = op(X, W) + b with W = sum_i c_i T_i, c the mean of its K coefficient sets, and op linear in both
arguments. Hence

    dL/dc_i = <dL/dW, T_i> = <dL/dY, op(X, T_i)> = <op'(dL/dY, T_i), X>

where op' maps output gradients back to inputs. The three expressions are three strategies for the same numbers:

* `weight`: one weight-gradient product, then one pass over the bank. It is what autograd does with the parametrization,
  so such a module is left as it is.
* `output`: forward computes Z_i = op(X, T_i) and their mixture Y; n - 1 products more than a frozen module needs.
* `input`: backward computes op'(dL/dY, T_i), whose mixture is the gradient that the module below wants anyway; n - 1
  products more as well, or n where the module below wants none.

With one template the last two need no extra product at all, and neither strategy has parts to mix: c goes into the
weight, and c times the gradient is <dL/dX, X> or <dL/dY, op(X, W)>. `choose_strategy` picks by shape.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.architecture.modules import is_plain, replaced_forwards
from recast_cli.engine.model.attach import Mixture
from recast_cli.engine.model.mixed_products import Geometry, Products, Scaled, channel, spread

INTENSITY = 16
"""Multiply-adds of a product in the time that one number takes to or from memory: 4 to 20 on CPUs, 160 on an H200."""


def choose_strategy(
    inputs: int,
    outputs: int,
    shape: torch.Size,
    templates: int,
    input_gradient: bool,
    half: bool = False,
    bias: bool = True,
) -> str:
    """The strategy with the least work beyond what the frozen module does, in numbers moved.

    Args:
        inputs: Numbers in X.
        outputs: Numbers in Y.
        shape: Of the weight, (outputs, inputs / groups, *kernel).
        templates: n.
        input_gradient: Whether the module below wants a gradient.
        half: Whether products are rounded to 16 bits. Mixing rounded products, as `output` does with several templates,
            would then hide changes of a coefficient that mixing the weights before they are rounded still shows.
        bias: Whether one is added to op(X, W). Without, Y itself would be kept, which a network may change in place.
    """
    numel = shape.numel()
    product = outputs * numel / shape[0] / INTENSITY
    costs = {
        # a number written counts twice, as its place in memory is fetched first
        "input": (templates - input_gradient) * product + (2 if templates == 1 else 6 * templates) * inputs,
        "output": (templates - 1) * product + (4 if templates == 1 else 8 * templates) * outputs,
        "weight": product + (2 * templates + 1) * numel,
    }
    if (half and templates > 1) or (templates == 1 and not bias):
        del costs["output"]
    return min(costs, key=lambda strategy: costs[strategy])


def cheap_gradients(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, the attached modules of `model` take the cheapest strategy to their coefficient gradients.

    Only modules that are `is_plain` are replaced. The parametrization stays where it is and stays the definition.
    """
    return replaced_forwards(model, lambda module: cheap_forward(module) if has_strategies(module) else None)


def has_strategies(module: Any) -> bool:
    """Whether a module is one that there are strategies for."""
    if not parametrize.is_parametrized(module, "weight") or not is_plain(module):
        return False
    first, *others = module.parametrizations.weight
    # an adapter on the same weight wants the weight's gradient anyway, and the mixture's is a pass over it
    # no strategy is for means of kernels, which are small
    return isinstance(first, Mixture) and not first.means and not others


def cheap_forward(module: Any) -> Callable[[Tensor], Tensor]:
    """A function that gives what the module's own forward gives, with cheap gradients where gradients are wanted."""
    linear = isinstance(module, nn.Linear)
    geometry = None if linear else Geometry(module.stride, module.padding, module.dilation, module.groups)
    coefficients = module.parametrizations.weight.original
    templates = module.parametrizations.weight[0].templates.get_buffer("tensor")
    first, kind, own = templates[0], templates.device.type, type(module).forward
    strategies: dict[tuple[torch.Size, bool, bool], str] = {}
    moving = module.bias is not None and module.bias.requires_grad  # autograd's own addition has its gradient
    biases: dict[torch.dtype, Tensor | None] = {}

    def compute(x: Tensor, strategy: str) -> Tensor:
        if x.dtype not in biases:
            biases[x.dtype] = None if module.bias is None or moving else module.bias.detach().to(x.dtype)
        product, bank = (Scaled, first) if len(templates) == 1 else (Products, templates)
        y: Tensor = product.apply(x, coefficients, bank, biases[x.dtype], geometry, strategy)
        return y + spread(module.bias.to(x.dtype), y, channel(geometry)) if moving else y

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return own(module, x)
        autocast = torch.is_autocast_enabled(kind)
        key = (x.shape, x.requires_grad, autocast)
        if key not in strategies:
            outputs = count_outputs(x, first, geometry)
            strategies[key] = choose_strategy(
                x.numel(),
                outputs,
                first.shape,
                len(templates),
                x.requires_grad,
                half=autocast or x.itemsize < 4,
                bias=module.bias is not None and not moving,
            )
        strategy = strategies[key]
        if strategy == "weight":
            return own(module, x)
        if not autocast:
            return compute(x, strategy)
        x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            return compute(x, strategy)

    return forward


def count_outputs(x: Tensor, weight: Tensor, geometry: Geometry | None) -> int:
    """Numbers in op(X, W), nearly: borders are left out."""
    if geometry is None:
        return x.numel() // x.shape[-1] * weight.shape[0]
    places = x.numel() // x.shape[1 if x.ndim == weight.ndim else 0]
    return places // math.prod(geometry.stride) * weight.shape[0]
