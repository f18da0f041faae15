"""Which entries of a weight matter for a task: squared gradients accumulated over its images, before training."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.images.decode import Images
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.inference import batches
from recast_cli.engine.runtime.precision import precision
from recast_cli.engine.task.head import Head

BATCHES, SIZE = 16, 32
"""Images are looked at in so many batches at most, of so many images."""


def squared_gradients(
    model: nn.Module, names: list[str], images: Images, head: Head, preprocessing: Preprocessing, seed: int
) -> dict[str, Tensor]:
    """The sum over batches of (dL/dW)², L the cross-entropy of a head: as RoSA chooses places.

    Args:
        model: Plain and frozen, on its device; its weights may want gradients within this call.
        names: Of modules.
        images: Of training.
        head: The linear probe's.
        preprocessing: The network's.
        seed: Of the choice of images.

    Returns:
        Name of a module -> (*shape of its weight), the same in every process.
    """
    device = next(model.parameters()).device
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: BATCHES * SIZE]
    head = Head(*(part.to(device) for part in head))
    totals = [torch.zeros_like(weight) for weight in weights]

    def accumulate() -> list[Tensor]:
        for weight in weights:
            weight.requires_grad_(True)
        for part in batches(len(order), SIZE):
            rows = order[part]
            with precision(device):
                found = features(model, normalise(images.pixels[rows].to(device), preprocessing))
                loss = F.cross_entropy(head(found), images.labels[rows].to(device))
            for total, gradient in zip(totals, torch.autograd.grad(loss, weights), strict=True):
                total.addcmul_(gradient, gradient)
        for weight in weights:
            weight.requires_grad_(False)
        return [total.cpu() for total in totals]

    return dict(zip(names, distributed.from_first(accumulate), strict=True))
