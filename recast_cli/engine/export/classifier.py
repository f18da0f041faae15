"""A task's head as the classifier of timm's own network, where the two are the same thing."""

import torch
from torch import Tensor, nn

from recast_cli.engine.architecture.description import classifiers_of
from recast_cli.engine.architecture.timm_config import config_of
from recast_cli.engine.errors import RecastError, option
from recast_cli.engine.export.merged import TOLERANCE, Merged
from recast_cli.engine.export.restore import source_specs
from recast_cli.engine.task.task import Task

OTHERWISE = f"Use {option('format', 'onnx')}, which takes the head as it is."


@torch.no_grad()
def with_classifier(merged: Merged) -> nn.Module:
    """timm's network with the task's head for a classifier; without a task, the network as it is.

    A network with several classifiers that are averaged (distilled ones) gets the head in each of them.

    Raises:
        RecastError: An adapter left modules beside the network's own, or its classifier cannot be the head.
    """
    model, task = merged.model, merged.task
    if task is None:
        return model
    if model.state_dict().keys() - source_specs(merged.base).keys():
        adapter = task.adapter.name if task.adapter else "RECAST"
        raise RecastError(
            f"Task {task.name}: the adapter {adapter} puts modules beside the network's own, and timm has no such "
            "network",
            f"Use {option('format', 'onnx')}.",
        )
    name = merged.base.known_architecture().name
    names = classifiers_of(config_of(model))
    if not names:
        raise RecastError(f"timm does not say what the classifier of {name} is called", OTHERWISE)
    try:
        model.reset_classifier(len(task.classes))  # type: ignore[operator]
        classifiers = [model.get_submodule(each) for each in names]
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise RecastError(f"The classifier of {name} cannot be replaced: {error}", OTHERWISE) from None
    for place, classifier in zip(names, classifiers, strict=True):
        fill(classifier, task, f"The classifier {place} of {name}")
    model.requires_grad_(False).eval()
    found = float((model(merged.images) - merged.logits).abs().max())
    if not found <= TOLERANCE:
        raise RecastError(
            f"{', '.join(names)} of {name} is more than one linear layer on its features: with the head of task "
            f"{task.name} in it, logits differ by {found:.3g}",
            OTHERWISE,
        )
    return model


def fill(classifier: nn.Module, task: Task, what: str) -> None:
    """Put a task's head into a linear layer, or into a convolution of one pixel; RecastError where it does not fit."""
    weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        lacks = "weight" if not isinstance(weight, Tensor) else "bias"
        raise RecastError(f"{what} is a {type(classifier).__name__} without a {lacks}", OTHERWISE)
    if weight.numel() != task.weight.numel() or len(bias) != len(task.bias):
        raise RecastError(
            f"{what} takes {weight[0].numel()} features, and the head of task {task.name} was learned on "
            f"{task.weight.shape[1]}",
            OTHERWISE,
        )
    weight.copy_(task.weight.view_as(weight))
    bias.copy_(task.bias)
