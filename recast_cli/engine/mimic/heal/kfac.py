"""How much a change of a layer's weight changes the source's decisions: Fisher information as a Kronecker product."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine.architecture.description import Architecture
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.mimic.compress.fisher import drawn_loss
from recast_cli.engine.mimic.heal.layer_inputs import groups_of, samples
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.inference import batches

BATCH_SIZE = 16
"""Images at a time."""
WEIGHED_IMAGES = 256
"""More images than that change little."""
DAMPING = 0.05
"""Added to the diagonal of either factor, as a share of its mean: few images leave directions without any."""


@dataclass(frozen=True)
class Factors:
    """The factors of a layer's curvature, its weight (G, rows, columns), G the groups of a convolution, else 1.

    Attributes:
        inputs: E[x x^T], (G, columns, columns).
        outputs: E[sum over samples of g g^T], (G, rows, rows), g the gradient of the loss at the layer's output.
    """

    inputs: Tensor
    outputs: Tensor


def layer_factors(
    model: nn.Module,
    names: Sequence[str],
    pixels: Tensor,
    architecture: Architecture,
    progress: Progress | None = None,
) -> dict[str, Factors]:
    """The Fisher information of some layers of the source, each as a Kronecker product.

    For a small change D of a weight, KL(source | changed) is about 1/2 tr(D^T A D B), with A = `outputs` and
    B = `inputs` (Martens and Grosse 2015, arXiv:1503.05671; of convolutions Grosse and Martens 2016, arXiv:1602.01407).
    Gradients are those of `drawn_loss`. Without a classifier the same stands for squared distances of features.

    The model is the source, frozen, and the modules are `measurable`. Of pixels (N, 3, H, W) uint8 at most
    `WEIGHED_IMAGES` are used, evenly spaced; `progress` is called after every batch of them.
    """
    chosen = pixels[:: -(-len(pixels) // WEIGHED_IMAGES)]
    device = next(model.parameters()).device
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def watch(name: str, module: nn.Module) -> Any:
        def seen(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            for part in samples(module, args[0].detach()):
                add(inputs, name, part @ part.mT)
                counts[name] += part.shape[-1]
            output.register_hook(lambda gradient: add(outputs, name, outer(module, gradient)))

        return module.register_forward_hook(seen)

    hooks = [watch(name, model.get_submodule(name)) for name in names]
    generator = torch.Generator().manual_seed(0)
    try:
        for part in batches(len(chosen), BATCH_SIZE):
            # the network is frozen: gradients reach the outputs of its layers because the images want theirs
            images = normalise(chosen[part].to(device), architecture.preprocessing).requires_grad_(True)
            with torch.enable_grad():
                loss = drawn_loss(model(images), architecture.classifies, generator)
            torch.autograd.grad(loss, images)
            if progress:
                progress(part.stop, len(chosen), "weighing layers")
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: Factors(damped(inputs[name] / counts[name]), damped(outputs[name] / len(chosen)))
        for name in names
        if name in outputs
    }


def outer(module: nn.Module, gradient: Tensor) -> Tensor:
    """sum of g g^T over samples, (G, rows, rows): of a linear layer's (..., rows), a convolution's (B, rows, H, W)."""
    rows = gradient.movedim(1, -1) if isinstance(module, nn.Conv2d) else gradient
    rows = rows.reshape(-1, groups_of(module), rows.shape[-1] // groups_of(module)).permute(1, 2, 0)
    return rows @ rows.mT


def add(total: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add to the sum of that name."""
    total[name] = total[name] + value if name in total else value


def damped(factor: Tensor) -> Tensor:
    """(G, m, m) with `DAMPING` of its mean diagonal on the diagonal."""
    mean = factor.diagonal(dim1=-2, dim2=-1).mean((-2, -1), keepdim=True)[..., None]
    return factor + DAMPING * mean * torch.eye(factor.shape[-1], device=factor.device)
