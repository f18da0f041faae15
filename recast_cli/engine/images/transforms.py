"""Batches of uint8 images on a device: normalised, flipped and lightly cropped."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.images.preprocessing import Preprocessing


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 with the network's mean and std, on the same device."""
    mean, std = statistics(preprocessing.mean, preprocessing.std, pixels.device)
    return pixels.float().div_(255).sub_(mean).div_(std)  # in place: a batch is large


@functools.lru_cache
def statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std (1, 3, 1, 1) on a device; kept, because sending them there makes the CPU wait."""
    with torch.inference_mode(False):  # they are for training as well
        return torch.tensor(mean, device=device).view(1, -1, 1, 1), torch.tensor(std, device=device).view(1, -1, 1, 1)


def draw_crops(count: int, generator: torch.Generator) -> Tensor:
    """For each of `count` images a crop of 80-100 % of its area, mirrored with probability 1/2.

    The generator is on the CPU, so that equal seeds give equal crops on every device.

    Returns:
        (count, 2, 3): the maps from output to input coordinates that `affine_grid` takes.
    """
    draws = torch.rand(4, count, generator=generator)
    scale = (0.8 + 0.2 * draws[0]).sqrt()
    flip = torch.where(draws[1] < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * flip, scale
    # the crop's centre may move as far as the crop stays inside the image, whose half width is 1
    theta[:, :, 2] = ((2 * draws[2:] - 1) * (1 - scale)).T
    return theta


def augment(pixels: Tensor, crops: Tensor) -> Tensor:
    """Flips and light crops: each image (B, 3, H, W, float) replaced by its crop (B, 2, 3), enlarged."""
    grid = F.affine_grid(crops, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
