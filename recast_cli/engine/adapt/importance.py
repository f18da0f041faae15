"""Which entries of a network matter for a task: gradients over its training images, before training."""

from collections.abc import Callable, Iterator, Sequence

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

SIZE = 32
"""Images a batch."""


def gradients(
    model: nn.Module,
    parameters: Sequence[Tensor],
    images: Images,
    logits: Callable[[Tensor, Tensor], Tensor],
    preprocessing: Preprocessing,
    most: int,
    seed: int,
    size: int = SIZE,
    class_weights: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[float, tuple[Tensor, ...]]]:
    """Gradients of a cross-entropy, batch by batch of `size` over the images as they are, at most `most` of them.

    The model is frozen, and its `parameters` want gradients while this runs. `seed` chooses the images. `logits` makes
    features (B, D) and numbers of images (B,) into logits.

    Yields:
        The weight of a batch, 1 in all, and the gradients of its mean loss.
    """
    device = next(model.parameters()).device
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:most]
    labels = images.labels[order]
    shares = [1.0] * len(order) if class_weights is None else class_weights[labels].tolist()
    total = sum(shares)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for part in batches(len(order), size):
            rows = order[part]
            with precision(device, dtype):
                found = features(model, normalise(images.pixels[rows].to(device), preprocessing))
                losses = F.cross_entropy(logits(found, rows), labels[part].to(device), reduction="none")
            share = sum(shares[part])
            loss = losses @ (torch.tensor(shares[part]) / share).to(device)
            yield share / total, torch.autograd.grad(loss, parameters, materialize_grads=True)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def squared_gradients(
    model: nn.Module, names: list[str], images: Images, head: Head, preprocessing: Preprocessing, seed: int
) -> dict[str, Tensor]:
    """The sum over batches of (dL/dW)², L the cross-entropy of a head, of 512 images: as RoSA chooses places.

    Returns:
        Name of a module -> (*shape of its weight), the same in every process.
    """
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    head = Head(*(part.to(weights[0].device) for part in head))

    def accumulate() -> list[Tensor]:
        totals = [torch.zeros_like(weight) for weight in weights]
        for _, found in gradients(model, weights, images, lambda found, _: head(found), preprocessing, 512, seed):
            for total, gradient in zip(totals, found, strict=True):
                total.addcmul_(gradient, gradient)
        return [total.cpu() for total in totals]

    return dict(zip(names, distributed.from_first(accumulate), strict=True))
