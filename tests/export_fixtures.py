"""Tasks to export: random heads and moved coefficients, which need no training to be told apart."""

import torch
from helpers import perturbed

from recast_cli.engine.task.task import Task


def task_of(base, size=32, adapter=None, name="colours", features=None, seed=0):
    """A task of `base` with three classes that was never trained."""
    generator = torch.Generator().manual_seed(seed)
    width = features or base.rest[last_norm(base)].shape[0]
    classes = ["blue", "green", "red"]
    record = {"format": 1, "name": name, "base_id": base.base_id, "image_size": size, "classes": classes}
    weight, bias = torch.randn(3, width, generator=generator) * 0.3, torch.randn(3, generator=generator)
    return Task(name, base.base_id, perturbed(base), weight, bias, record, adapter)


def last_norm(base):
    """A tensor whose length is the number of features of the two networks of the tests."""
    return "norm.weight" if "norm.weight" in base.rest else "layer4.1.bn2.weight"
