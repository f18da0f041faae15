"""How well a base stands in for its source, on real images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.architecture.modules import listen
from recast_cli.engine.base.base import Base
from recast_cli.engine.errors import RecastError, option
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.splits import measured_part
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.images.unlabelled import list_images
from recast_cli.engine.model.attach import merge
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime.device import choose_device
from recast_cli.engine.runtime.inference import batches
from recast_cli.engine.source.source import Source


@dataclass(frozen=True)
class Verification:
    """Source against base.

    Attributes:
        images: How many were compared.
        agreement: Share of images with the same top-1; None where the source has no classifier.
        feature_cosine: Mean cosine similarity of each mimicked module's outputs, by module.
    """

    images: int
    agreement: float | None
    feature_cosine: dict[str, float]


@torch.no_grad()
def verify(
    source: Source, base: Base, data: Path, *, device: str | None = None, progress: Progress | None = None
) -> Verification:
    """Run source and base side by side on all images of a folder, labelled or not (its test, val or train
    part where it has parts).

    Raises:
        RecastError: The architecture is unknown, or the folder has no readable images.
    """
    architecture = base.known_architecture()
    where = choose_device(device)
    folder = data / measured_part(data)
    images = decode(folder, list_images(folder, None), architecture.preprocessing, progress=progress)
    models = [source.network().to(where), merge(base).to(where)]
    outputs: list[dict[str, Tensor]] = [{}, {}]
    for model, seen in zip(models, outputs, strict=True):
        listen(model, base.layout.modules, seen)
    cosines = {name: 0.0 for name in base.layout.modules}
    same = 0
    for part in batches(len(images), 32):
        batch = normalise(images.pixels[part].to(where), architecture.preprocessing)
        first, second = (model(batch) for model in models)
        same += int((first.argmax(1) == second.argmax(1)).sum()) if architecture.classifies else 0
        for name in outputs[0].keys() & outputs[1].keys():
            here, there = (seen[name].flatten(1).double() for seen in outputs)
            if len(here) % (part.stop - part.start):
                hint = f"Leave out {option('verify')} for this network."
                raise RecastError(f"{name} does not keep images apart", hint)
            cosines[name] += float(F.cosine_similarity(here, there, dim=1).mean()) * (part.stop - part.start)
        if progress:
            progress(part.stop, len(images), "comparing")
    agreement = same / len(images) if architecture.classifies else None
    return Verification(len(images), agreement, {name: value / len(images) for name, value in cosines.items()})


def check_verifiable(source: Source, data: Path) -> None:
    """Raise RecastError where `verify` cannot work: no known architecture, or no images."""
    source.known_architecture(f"Leave out {option('verify')}.")
    list_images(data / measured_part(data))
