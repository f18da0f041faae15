"""Products of a module with its mixed weight whose backward pass makes coefficient gradients without a product for W.

The strategies of coefficient_gradients.py as functions of autograd: `Scaled` of one template, `Products` of several.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as product

from recast_cli.engine.base.mixture import mix

SMALL = 1e-20
"""Added to a coefficient that divides: lost in its rounding, unless it is 0."""
CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
INPUT_GRADIENT: dict[int, Callable[..., Tensor]] = {
    1: product.conv1d_input,
    2: product.conv2d_input,
    3: product.conv3d_input,
}


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
        strategy: str,
    ) -> Tensor:
        """x and bias in the precision to compute in; coefficients (K, 1) and template (*shape) in the bank's."""
        # dividing by a small c loses nothing, only by 0; to ask whether it is 0 would make a graphics card wait
        # without dimensions: on a CPU a factor (1,) takes half as long again
        c = (coefficients.view(()) if len(coefficients) == 1 else coefficients.mean()).add(SMALL)
        # a graphics card rounds as it writes, a CPU in another pass
        weight = torch.mul(c, template, out=torch.empty_like(template, dtype=x.dtype))
        ctx.geometry, ctx.strategy, ctx.shape, ctx.sets = geometry, strategy, x.shape, len(coefficients)
        if strategy == "input":
            ctx.save_for_backward(x, weight, c)
            return apply(x, weight, bias, geometry)
        assert bias is not None, "what is kept may be changed in place by who gets it"
        y = apply(x, weight, None, geometry)
        ctx.save_for_backward(y, weight, c)
        return y + spread(bias, y, channel(geometry))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        check_once()
        kept, weight, c = ctx.saved_tensors
        by_x = None
        if ctx.strategy == "input":
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
    """op(X, sum_i c_i T_i) + b, with gradients by X and C alone, on the `output` or the `input` strategy."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        coefficients: Tensor,
        templates: Tensor,
        bias: Tensor | None,
        geometry: Geometry | None,
        strategy: str,
    ) -> Tensor:
        """x and bias in the precision to compute in; coefficients (K, n), templates (n, *shape) in the bank's."""
        ctx.geometry, ctx.strategy, ctx.shape = geometry, strategy, x.shape
        if strategy == "input":
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
        if ctx.strategy == "output":
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
    # `dot` counts in 32 bits on CUDA
    whole = first.is_contiguous() and second.is_contiguous() and first.numel() < 2**31
    if whole and (first.itemsize >= 4 or first.is_cuda):
        return torch.dot(first.view(-1), second.view(-1))
    products = first * second
    if first.itemsize < 4 and products.ndim > 1:
        products = products.sum(channel)
    return products.sum(dtype=torch.promote_types(first.dtype, torch.float32))
