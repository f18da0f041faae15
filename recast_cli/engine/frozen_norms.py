"""Frozen batch norm the cheap way: for training, its forward is replaced by the affine map that it is.

In eval mode Y = s X + t for each channel, s = weight / sqrt(variance + eps) and t = bias - s mean. Where neither is
trained the backward pass is one product, s dL/dY, and X need not be kept; torch's own keeps X and also sums over it
for the gradients of weight and bias that nobody asked for, a quarter of a training step of MobileNetV2 on a CPU. timm's
`freeze_batch_norm_2d` does the same, but its products of 16-bit activations come out in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Affine(torch.autograd.Function):
    """Y = s X + t in X's type, s and t float32 of a shape that is added to X; only X has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The products are made in the wider of the types, and rounded once."""
        ctx.save_for_backward(scale)
        return torch.addcmul(shift, x, scale, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return torch.mul(gradient, scale, out=torch.empty_like(gradient)), None, None


@contextmanager
def frozen_norms(model: nn.Module) -> Iterator[None]:
    """Within it, batch norm of `model` that learns nothing is an affine map with a cheap backward pass.

    That is torch's batch norm and timm's with an activation, in eval mode, with statistics, none of its parameters
    trained. What is computed without gradients is torch's own.
    """
    replaced = [module for module in model.modules() if is_frozen(module)]
    for module in replaced:
        module.forward = affine_forward(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def is_frozen(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose output is an affine map of its input that nobody trains."""
    if type(module) not in (*PLAIN, BatchNormAct2d):
        return False
    assert isinstance(module, _BatchNorm)
    learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    return not (learns or module.training or module.running_mean is None)


def affine_forward(module: Any) -> Callable[[Tensor], Tensor]:
    """A function that gives what the module's own forward gives."""
    own = type(module).forward
    with torch.no_grad():
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight
        shift = -module.running_mean * scale
        shift = shift if module.bias is None else shift + module.bias

    def forward(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return own(module, x)
        shape = (-1, *[1] * (x.ndim - 2))
        y = Affine.apply(x, scale.view(shape), shift.view(shape))
        return module.act(module.drop(y)) if isinstance(module, BatchNormAct2d) else y

    return forward
