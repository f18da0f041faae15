"""The merged network that is exported, and what it makes of a few images: the measure of every file."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.base.base import Base
from recast_cli.engine.errors import RecastError, one_line, option
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.model.attach import merge
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.task import Task

TOLERANCE = 1e-4
"""Largest difference of a logit that counts as the same network."""
IMAGES = 3


class Classified(nn.Module):
    """A timm network's features under a task's head, as `eval` measures it."""

    def __init__(self, model: nn.Module, head: Head) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("weight", head.weight)
        self.register_buffer("bias", head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (batch, channels, H, W) -> logits (batch, classes)."""
        return F.linear(features(self.model, images), self.get_buffer("weight"), self.get_buffer("bias"))


@dataclass(frozen=True)
class Merged:
    """A network with plain weights: of a task, or where that is None of the source's own classifier.

    Attributes:
        model: timm's network; of a task, without its head.
        network: Normalised images -> logits, with the task's head where there is one.
        preprocessing: At the image size of the task.
        images: Random normalised images (IMAGES, channels, H, W).
        logits: What `network` makes of them.
    """

    base: Base
    task: Task | None
    model: nn.Module
    network: nn.Module
    preprocessing: Preprocessing
    images: Tensor
    logits: Tensor

    @property
    def title(self) -> str:
        """What it is, for messages."""
        return f"task {self.task.name}" if self.task else self.base.source

    def difference(self, logits: Tensor, what: str) -> float:
        """The largest difference to the merged network's logits of those (IMAGES, outputs) that `what` gives.

        Raises:
            RecastError: It is above TOLERANCE, or undefined.
        """
        if logits.shape != self.logits.shape:
            what = f"{what} gives logits of shape {tuple(logits.shape)} instead of {tuple(self.logits.shape)}"
            raise RecastError(what, OTHERWISE)
        found = float((logits - self.logits).abs().max())
        if not found <= TOLERANCE:
            what = f"{what} differs from the merged network by {found:.3g} in a logit, more than {TOLERANCE:g}"
            raise RecastError(what, OTHERWISE)
        return found


OTHERWISE = f"Nothing was written; try another {option('format')}."


@torch.no_grad()
def merge_task(base: Base, task: Task | None) -> Merged:
    """Merge a task, or the source itself, into plain weights on the CPU.

    Raises:
        RecastError: The architecture is unknown, or does not take images of the size that its data config names.
    """
    architecture = base.known_architecture()
    preprocessing = architecture.preprocessing.at(task.image_size if task else None)
    if task is None:
        model = network = merge(base)
    else:
        model = merge(base, task.vector, task.image_size, task.adapter, task.places)
        network = Classified(model, task.head).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, *preprocessing.input_size), dtype=torch.uint8, generator=generator)
    images = normalise(pixels, preprocessing)
    try:
        logits = network(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = " x ".join(map(str, preprocessing.input_size))
        what = f"{architecture.name} does not take the images of {shape} that its data config names: {one_line(error)}"
        raise RecastError(what, "Correct input_size in the source's config.json and mimic it again.") from None
    return Merged(base, task, model, network, preprocessing, images, logits)
