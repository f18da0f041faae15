"""Linear probe, training, and the head settled: how parameters of a network and a head learn a task.

`adapt` gives it the coefficients of a base, `compare` whatever a method trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine.adapt.linear_probe import Probe, fit_probe, halfway
from recast_cli.engine.adapt.loop import Part, TrainingData, train
from recast_cli.engine.adapt.state import Epoch, State, Trained, put
from recast_cli.engine.images.decode import Images
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.measure.metrics import top_k
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.inference import infer, take_features
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import RECIPES, AdaptOptions

Rows = tuple[Tensor, Tensor]
"""Features (N, width) of images, and their labels (N,)."""


def class_weights(labels: Tensor, classes: int, options: AdaptOptions) -> Tensor | None:
    """Weights (classes,) of the loss where the options want them: by inverse frequency, with mean 1 over the images.

    A class without images gets 0.
    """
    if options.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes).float()
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp_min(1)), torch.zeros(()))


def extract_features(
    model: nn.Module,
    images: dict[str, Images],
    preprocessing: Preprocessing,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Rows, Rows]:
    """What a network makes of the training and of the validation images, as they are.

    In the precision of measuring, as a head that is fitted to them will be measured: a CPU measures in float32, and
    there a head that was fitted to bfloat16 features can be a point worse.

    Args:
        model: On `device`.
        images: `train` and `val`.
        preprocessing: The network's.
        device: Where the network is.
        progress: Called after every batch.
    """

    def rows(part: Images) -> Rows:
        found = infer(take_features(model), part.pixels, preprocessing, device, progress=progress, text="probing")
        return found, part.labels

    return rows(images["train"]), rows(images["val"])


def probe_rows(train: Rows, val: Rows, classes: int, class_weights: Tensor | None) -> Probe:
    """The linear probe, `fit_probe`, the same in all processes."""
    return distributed.from_first(lambda: fit_probe(train, val, classes, class_weights))


def start_state(
    parameters: Sequence[nn.Parameter], probe: Probe, options: AdaptOptions, fixed: dict[str, Tensor] | None = None
) -> State:
    """Epoch 0: the parameters as they are, and the linear probe or random weights for a head.

    Args:
        parameters: What is trained of the network.
        probe: The linear probe.
        options: The recipe says which head.
        fixed: What of an adapter was chosen and stays.
    """
    head = probe.head
    accuracy: float | None = probe.val_top1
    if RECIPES[options.recipe].head == "random":  # as torch starts a linear layer
        bound = head.weight.shape[1] ** -0.5
        generator = torch.Generator().manual_seed(options.seed)
        head = Head(*(torch.empty_like(part).uniform_(-bound, bound, generator=generator) for part in head))
        accuracy = None
    trained = Trained(parameters, head).copy()
    return State(
        trained=trained,
        best=trained,
        probe=probe,
        history=[Epoch(0, None, accuracy)],
        fixed={name: tensor.cpu().clone() for name, tensor in (fixed or {}).items()},
    )


def learn(
    model: nn.Module,
    parts: Sequence[Part],
    state: State,
    training_data: TrainingData,
    progress: Progress | None = None,
    **training: Any,
) -> State:
    """Train from `state`, then settle the head where the recipe starts from the linear probe.

    Args:
        model: Frozen but for what `parts` hold, on its device, in eval mode.
        parts: What is trained beside the head; none where it is the head alone.
        state: From `start_state`, or of a run to be continued.
        training_data: What is learned.
        progress: Called after every step, and after every batch that is looked at.
        training: Further options of `train`.

    Raises:
        RecastError: The loss is no longer finite.
    """
    state = train(model, parts, state, training_data, progress=progress, **training)
    if RECIPES[training_data.options.recipe].head == "random":
        return state
    put([parameter for part in parts for parameter in part.parameters], state.best.values)
    rows = extract_features(
        model, training_data.images, training_data.preprocessing, next(model.parameters()).device, progress
    )
    return refit_head(state, *rows, training_data.class_weights)


def refit_head(state: State, train: Rows, val: Rows, class_weights: Tensor | None) -> State:
    """The head of the chosen epoch, half trained and half solved: the mean of both.

    The trained one lags behind features that moved under it, the solved one, a linear probe, knows the training images
    as they are and not flipped and cropped. They err differently: their mean is no worse than the better one, and where
    both are as good better than either (docs/evidence/head-and-epochs.md).

    Args:
        state: Of the finished training.
        train: What the network makes of the training images with the parameters of `state.best`.
        val: The same of the validation images.
        class_weights: (classes,) of the loss, or None.
    """
    values, trained = state.best
    solved = probe_rows(train, val, len(trained.bias), class_weights).head
    head = halfway(trained, solved)
    return replace(state, best=Trained(values, head), final_val_top1=top_k(head(val[0]), val[1]))
