"""How much each value of a base matters: the Fisher information of the source's own decisions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.attach import merge
from recast_cli.engine.base import Base
from recast_cli.engine.images import normalise
from recast_cli.engine.layout import template_key

Progress = Callable[[int, int, str], None]
PICTURES = 32
"""The squared gradients of so few settle which tensors matter, which is all that is asked of them."""
FLOOR = 0.05
"""Of a tensor's mean, added to each of its values: few pictures leave gaps."""


def sensitivity(base: Base, pixels: Tensor, progress: Progress | None = None) -> dict[str, Tensor] | None:
    """By name of a base's tensor, the weight of a squared rounding error: half the sum of all is about the divergence.

    To second order KL(source | base) = 1/2 sum_i F_i d_i^2 for small errors d_i that are independent of each other,
    with F_i = E[(d log p(y | x) / d w_i)^2], x a picture and y drawn from the source's own probabilities (Amari 1998,
    doi:10.1162/089976698300017746). No label is used.

    Args:
        base: Without codes, of a known architecture with a classifier.
        pixels: (N, 3, H, W) uint8; at most `PICTURES` of them are used, evenly spaced.
        progress: Called after every picture.

    Returns:
        Tensors of the base's own shapes; None where there is no classifier, so nothing is decided.
    """
    architecture = base.known_architecture()
    if not architecture.classifies:
        return None
    model = merge(base).requires_grad_(True)
    found = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    chosen = pixels[:: -(-len(pixels) // PICTURES)]
    generator = torch.Generator().manual_seed(0)
    for number, picture in enumerate(normalise(chosen, architecture.data)):
        model.zero_grad()
        logits = model(picture[None])
        label = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[0]
        F.cross_entropy(logits, label).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.square() / len(chosen)
        if progress:
            progress(number + 1, len(chosen), "weighing tensors")
    by_tensor = {name: value for name, value in found.items() if name in base.tensors}
    for bank in base.layout.banks:
        # an error of a template reaches every module that mixes it, times the coefficient
        weights = torch.stack([base.coefficients(module).mean(0) for module in bank.modules]).square()  # (layers, n)
        values = torch.stack([found[f"{module}.weight"] for module in bank.modules])
        by_tensor[template_key(bank)] = torch.tensordot(weights.T, values, dims=1)
    return {name: value + FLOOR * value.mean() for name, value in by_tensor.items()}
