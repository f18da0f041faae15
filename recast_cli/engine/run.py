"""Run a network over decoded images: device, precision, batches and augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import normalise
from recast_cli.engine.network import features

Progress = Callable[[int, int, str], None]


def choose_device(name: str | None = None) -> torch.device:
    """The device called `name` (cpu, cuda, cuda:1, mps); default: CUDA where it is, else the CPU.

    Raises:
        RecastError: No such device, or not on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecastError(f"--device {name} is unknown", "Use cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise RecastError(f"--device {name}: no such CUDA device here", "Use --device cpu, or leave it out.")
    if device.type not in ("cpu", "cuda") and not (device.type == "mps" and torch.backends.mps.is_available()):
        raise RecastError(f"--device {name} is not available here", "Use cpu or cuda.")
    return device


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 autocast on CUDA; full precision elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` rows, `size` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@torch.no_grad()
def infer(
    function: Callable[[Tensor], Tensor],
    pixels: Tensor,
    data: dict[str, Any],
    device: torch.device,
    batch_size: int = 64,
    progress: Progress | None = None,
    text: str = "",
) -> Tensor:
    """`function` of all normalised images, batch by batch: (N, outputs) float32 on the CPU.

    Args:
        function: A network, or its features: (B, 3, H, W) -> (B, outputs).
        pixels: (N, 3, H, W) uint8.
        data: The network's data config.
        device: Where `function` lives.
        batch_size: B.
        progress: Called after every batch, with `text`.
    """
    outputs = []
    for part in batches(len(pixels), batch_size):
        with precision(device):
            outputs.append(function(normalise(pixels[part].to(device, non_blocking=True), data)).float())
        if progress:
            progress(part.stop, len(pixels), text)
    return torch.cat(outputs).cpu()


def take_features(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Images -> features (B, head_hidden_size), as a function of the images alone."""
    return lambda images: features(model, images)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flips and light crops: each image mirrored with probability 1/2, and a window of 80-100 % of its area enlarged.

    Args:
        pixels: (B, 3, H, W) float, on any device.
        generator: On the CPU, so that equal seeds give equal crops on every device.
    """
    count = len(pixels)
    draws = torch.rand(4, count, generator=generator)
    scale = (0.8 + 0.2 * draws[0]).sqrt()
    flip = torch.where(draws[1] < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * flip, scale
    # the window's centre may move as far as the window stays inside the picture, whose half width is 1
    theta[:, :, 2] = ((2 * draws[2:] - 1) * (1 - scale)).T
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False).to(pixels.device)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
