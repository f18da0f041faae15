"""Frozen batch norm the cheap way: for training, its backward pass is the one product that it is.

In eval mode Y = s X + t for each channel, with s = weight / sqrt(variance + eps). Where neither weight nor bias is
trained the backward pass is s dL/dY, and X need not be kept; torch's own keeps X, and also sums over it for gradients
that nobody asked for. The forward pass stays torch's: products of 16-bit activations with float32 numbers, as in timm's
`freeze_batch_norm_2d`, are slow on a CPU.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recast_cli.engine.architecture.modules import replaced_forwards

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Frozen(torch.autograd.Function):
    """Batch norm in eval mode, of which only the input has a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
    ) -> Tensor:
        """x (N, C, ...); scale s and what it and t are made of (C,)."""
        ctx.save_for_backward(scale)
        return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        """In the gradient's own type: of 16 bits s is rounded to 16 bits, too."""
        (scale,) = ctx.saved_tensors
        by_x = gradient * scale.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 2))
        return by_x, None, None, None, None, None, None


def frozen_norms(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, batch norm of `model` that learns nothing has a cheap backward pass.

    That is torch's batch norm and timm's with an activation, in eval mode, with statistics, none of its parameters
    trained. What is computed without gradients is torch's own.
    """
    return replaced_forwards(model, lambda module: cheap_forward(module) if is_frozen(module) else None)


def is_frozen(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose output is an affine map of its input that nobody trains."""
    if type(module) not in (*PLAIN, BatchNormAct2d):
        return False
    assert isinstance(module, _BatchNorm)
    learns = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    return not (learns or module.training or module.running_mean is None)


def cheap_forward(module: Any) -> Callable[[Tensor], Tensor]:
    """A function that gives what the module's own forward gives."""
    own = type(module).forward
    with torch.no_grad():
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight

    def forward(x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return own(module, x)
        mean, variance = module.running_mean, module.running_var
        y = Frozen.apply(x, scale, module.weight, module.bias, mean, variance, module.eps)
        return module.act(module.drop(y)) if isinstance(module, BatchNormAct2d) else y

    return forward
