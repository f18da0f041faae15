"""Coefficient gradients the cheap way: for training, an attached module's forward is replaced by an equivalent one.

A module computes Y = op(X, W) + b with W = sum_i c_i T_i, c the mean of its K coefficient sets, and op linear in both
arguments. Hence

    dL/dc_i = <dL/dW, T_i> = <dL/dY, op(X, T_i)> = <op'(dL/dY, T_i), X>

where op' maps output gradients back to inputs. The three expressions are three roads to the same numbers:

* `weight`: one weight-gradient product, then one pass over the bank. It is what autograd does with the parametrization,
  so such a module is left as it is.
* `output`: forward computes Z_i = op(X, T_i) and their mixture Y; n - 1 products more than a frozen module needs.
* `input`: backward computes op'(dL/dY, T_i), whose mixture is the gradient that the module below wants anyway; n - 1
  products more as well, or n where the module below wants none.

With one template the last two need no extra product at all, and neither road has parts to mix: c goes into the weight,
and c times the gradient is <dL/dX, X> or <dL/dY, op(X, W)>. `choose_road` picks by shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as product
from torch.nn.utils import parametrize

from recast_cli.engine.attach import Mixture
from recast_cli.engine.mixture import mix

INTENSITY = 16
"""Multiply-adds of a product in the time that one number takes to or from memory: 4 to 20 on CPUs, 160 on an H200."""
SMALL = 1e-20
"""Added to a coefficient that divides: lost in its rounding, unless it is 0."""
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
INPUT_GRADIENT = {1: product.conv1d_input, 2: product.conv2d_input, 3: product.conv3d_input}


class Geometry(NamedTuple):
    """Of a convolution, as `torch.nn.functional.conv2d` takes it."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def apply(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """op(X, W) + b: linear without a geometry, else a convolution."""
    if geometry is None:
        return F.linear(x, weight, bias)
    return CONVOLVE[weight.ndim - 2](x, weight, bias, *geometry)


def transpose(gradient: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry | None) -> Tensor:
    """op'(dL/dY, W): the gradient by X, of `shape`."""
    if geometry is None:
        return gradient @ weight
    return INPUT_GRADIENT[weight.ndim - 2](shape, weight, gradient, *geometry)


class Scaled(torch.autograd.Function):
    """op(X, c T) + b for one template: dL/dc = <dL/dX, X> / c, or <dL/dY, op(X, c T)> / c, a single pass either way."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        coefficients: Tensor,
        template: Tensor,
        bias: Tensor | None,
        geometry: Geometry | None,
        road: str,
    ) -> Tensor:
        """x and bias in the precision to compute in; coefficients (K, 1) and template (*shape) in the bank's."""
        # dividing by a small c loses nothing, only by 0; to ask whether it is 0 would make a graphics card wait
        # without dimensions: on a CPU a factor (1,) takes half as long again
        c = (coefficients.view(()) if len(coefficients) == 1 else coefficients.mean()).add(SMALL)
        # a graphics card rounds as it writes, a CPU in another pass
        weight = torch.mul(c, template, out=torch.empty_like(template, dtype=x.dtype))
        ctx.geometry, ctx.road, ctx.shape, ctx.sets = geometry, road, x.shape, len(coefficients)
        if road == "input":
            ctx.save_for_backward(x, weight, c)
            return apply(x, weight, bias, geometry)
        y = apply(x, weight, None, geometry)
        ctx.save_for_backward(y, weight, c)
        return y if bias is None else y + spread(bias, y, channel(geometry))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        check_once()
        kept, weight, c = ctx.saved_tensors
        by_x = None
        if ctx.road == "input":
            by_x = transpose(gradient, weight, ctx.shape, ctx.geometry)
            product = inner(by_x, kept, channel(ctx.geometry))
        else:
            product = inner(gradient, kept, channel(ctx.geometry))  # first, while the gradient is in the cache
            if ctx.needs_input_grad[0]:
                by_x = transpose(gradient, weight, ctx.shape, ctx.geometry)
        by_c = (product / c).view(1, 1)
        if ctx.sets > 1:  # they are averaged, so each has the same gradient
            by_c = (by_c / ctx.sets).repeat(ctx.sets, 1)
        return by_x, by_c, None, None, None, None


class Products(torch.autograd.Function):
    """op(X, sum_i c_i T_i) + b, with gradients by X and C alone, on the `output` or the `input` road."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        coefficients: Tensor,
        templates: Tensor,
        bias: Tensor | None,
        geometry: Geometry | None,
        road: str,
    ) -> Tensor:
        """x and bias in the precision to compute in; coefficients (K, n), templates (n, *shape) in the bank's."""
        ctx.geometry, ctx.road, ctx.shape = geometry, road, x.shape
        if road == "input":
            ctx.save_for_backward(coefficients, templates, x)
            return apply(x, mix(coefficients, templates).to(x.dtype), bias, geometry)
        parts = [apply(x, template.to(x.dtype), None, geometry) for template in templates]
        ctx.save_for_backward(coefficients, templates, *parts)
        return mix_parts(coefficients, parts, bias, channel(geometry))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        check_once()
        coefficients, templates, *kept = ctx.saved_tensors
        by_x = None
        if ctx.road == "output":
            by_c = [inner(gradient, part, channel(ctx.geometry)) for part in kept]
            if ctx.needs_input_grad[0]:
                weight = mix(coefficients, templates).to(gradient.dtype)
                by_x = transpose(gradient, weight, ctx.shape, ctx.geometry)
        else:
            parts = [transpose(gradient, t.to(gradient.dtype), ctx.shape, ctx.geometry) for t in templates]
            by_c = [inner(part, kept[0], channel(ctx.geometry)) for part in parts]
            if ctx.needs_input_grad[0]:
                by_x = mix_parts(coefficients, parts, None, channel(ctx.geometry))
        sets = len(coefficients)
        return by_x, (torch.stack(by_c).to(coefficients.dtype) / sets).repeat(sets, 1), None, None, None, None


def check_once() -> None:
    """Refuse gradients of gradients, as torch's `once_differentiable` does; that takes longer than a small product."""
    if torch.is_grad_enabled():
        raise RuntimeError("cheap_gradients makes no gradients of gradients; leave it to use create_graph=True")


def channel(geometry: Geometry | None) -> int:
    """The dimension of activations that the bias belongs to."""
    return -1 if geometry is None else 1


def spread(bias: Tensor, like: Tensor, channel: int) -> Tensor:
    """The bias in a shape that is added to activations."""
    return bias.view(-1, *[1] * (like.ndim - 2)) if channel == 1 else bias


def mix_parts(coefficients: Tensor, parts: list[Tensor], bias: Tensor | None, channel: int) -> Tensor:
    """sum_i c_i Z_i + b, a pass for each part; `channel` is the dimension that the bias belongs to."""
    # factors of one dimension take part in type promotion: of bfloat16 parts, too, the sums are made in float32
    first, *factors = coefficients.mean(0)[:, None]
    total = torch.empty_like(parts[0])
    if bias is None:
        torch.mul(parts[0], first, out=total)
    else:
        torch.addcmul(spread(bias, total, channel), parts[0], first, out=total)
    for factor, part in zip(factors, parts[1:], strict=True):
        torch.addcmul(total, part, factor, out=total)
    return total


def inner(first: Tensor, second: Tensor, channel: int) -> Tensor:
    """<A, B> without a copy of either, without dimensions, summed in float32 or better.

    Of 16 bits the products are rounded to 16 bits, and so are the sums over the channels, which are made in float32:
    errors that differ from number to number and cancel, as those of A and B do. To sum all of it in float32 at once,
    torch would first make a float32 copy of the products, half as long again. On CUDA one kernel reads both and rounds
    the sum alone.
    """
    if (first.itemsize >= 4 or first.is_cuda) and first.is_contiguous() and second.is_contiguous():
        return torch.dot(first.view(-1), second.view(-1))
    products = first * second
    if first.itemsize < 4 and products.ndim > 1:
        products = products.sum(channel)
    return products.sum(dtype=torch.promote_types(first.dtype, torch.float32))


def choose_road(
    inputs: int, outputs: int, shape: torch.Size, templates: int, input_gradient: bool, half: bool = False
) -> str:
    """The road with the least work beyond what the frozen module does, in numbers moved.

    Args:
        inputs: Numbers in X.
        outputs: Numbers in Y.
        shape: Of the weight, (outputs, inputs / groups, *kernel).
        templates: n.
        input_gradient: Whether the module below wants a gradient.
        half: Whether products are rounded to 16 bits. Mixing rounded products, as `output` does with several templates,
            would then hide changes of a coefficient that mixing the weights before they are rounded still shows.
    """
    numel = shape.numel()
    product = outputs * numel / shape[0] / INTENSITY
    costs = {
        # a number written counts twice, as its place in memory is fetched first
        "input": (templates - input_gradient) * product + (2 if templates == 1 else 6 * templates) * inputs,
        "output": (templates - 1) * product + (4 if templates == 1 else 8 * templates) * outputs,
        "weight": product + (2 * templates + 1) * numel,
    }
    if half and templates > 1:
        del costs["output"]
    return min(costs, key=lambda road: costs[road])


@contextmanager
def cheap_gradients(model: nn.Module) -> Iterator[None]:
    """Within it, the attached modules of `model` take the cheapest road to their coefficient gradients.

    Only modules whose forward is torch's own are replaced: a subclass may do more with its weight than op (weight
    standardisation, padding that depends on the input). The parametrization stays where it is and stays the definition.
    """
    replaced = []
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight") and (known := read_geometry(module)) is not None:
            module.forward = cheap_forward(module, *known)
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def read_geometry(module: Any) -> tuple[Geometry | None] | None:
    """The geometry of a plain convolution, or None in its place for a plain linear module; nothing for any other."""
    first, *others = module.parametrizations.weight
    # an adapter on the same weight wants the weight's gradient anyway, and the mixture's is a pass over it
    # the roads take coefficients for what templates count, which those of cut kernels are not; such kernels are small
    if (
        not isinstance(first, Mixture)
        or first.means
        or others
        or (module.bias is not None and module.bias.requires_grad)
    ):
        return None
    kind = type(module).forward
    if kind is nn.Linear.forward:
        return (None,)
    convolution = kind in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
    if not convolution or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    return (Geometry(module.stride, module.padding, module.dilation, module.groups),)


def cheap_forward(module: Any, geometry: Geometry | None) -> Callable[[Tensor], Tensor]:
    """A function that gives what the module's own forward gives, with cheap gradients where gradients are wanted."""
    coefficients = module.parametrizations.weight.original
    templates = module.parametrizations.weight[0].templates.get_buffer("tensor")
    first, kind, own = templates[0], templates.device.type, type(module).forward
    roads: dict[tuple[torch.Size, bool, bool], str] = {}
    biases: dict[torch.dtype, Tensor | None] = {}

    def compute(x: Tensor, road: str) -> Tensor:
        if x.dtype not in biases:  # it is frozen
            biases[x.dtype] = None if module.bias is None else module.bias.detach().to(x.dtype)
        bias = biases[x.dtype]
        if len(templates) == 1:
            return Scaled.apply(x, coefficients, first, bias, geometry, road)
        return Products.apply(x, coefficients, templates, bias, geometry, road)

    def forward(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return own(module, x)
        autocast = torch.is_autocast_enabled(kind)
        key = (x.shape, x.requires_grad, autocast)
        if key not in roads:
            outputs = count_outputs(x, first, geometry)
            roads[key] = choose_road(
                x.numel(), outputs, first.shape, len(templates), x.requires_grad, autocast or x.itemsize < 4
            )
        road = roads[key]
        if road == "weight":
            return own(module, x)
        if not autocast:
            return compute(x, road)
        x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            return compute(x, road)

    return forward


def count_outputs(x: Tensor, weight: Tensor, geometry: Geometry | None) -> int:
    """Numbers in op(X, W), nearly: borders are left out."""
    if geometry is None:
        return x.numel() // x.shape[-1] * weight.shape[0]
    places = x.numel() // x.shape[1 if x.ndim == weight.ndim else 0]
    return places // math.prod(geometry.stride) * weight.shape[0]
