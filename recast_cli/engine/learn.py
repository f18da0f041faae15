"""Linear probe, training, and the head solved once more: how parameters of a network and a head learn a task.

`adapt` gives it the coefficients of a base, `compare` whatever a method trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from recast_cli.engine import ranks
from recast_cli.engine.images import Images
from recast_cli.engine.options import RECIPES, AdaptOptions
from recast_cli.engine.probe import Probe, fit_probe
from recast_cli.engine.run import Progress, infer, take_features
from recast_cli.engine.state import Epoch, State
from recast_cli.engine.train import Part, train


def class_weights(labels: Tensor, classes: int, options: AdaptOptions) -> Tensor | None:
    """Weights (classes,) of the loss where the options want them: by inverse frequency, with mean 1 over the images.

    A class without images gets 0.
    """
    if options.class_weights == "none":
        return None
    counts = torch.bincount(labels, minlength=classes).float()
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp_min(1)), torch.zeros(()))


def probe_model(
    model: nn.Module,
    images: dict[str, Images],
    classes: int,
    class_weights: Tensor | None,
    data: dict[str, Any],
    device: torch.device,
    progress: Progress | None,
) -> Probe:
    """The linear probe on the features that a network makes of the training images, chosen on the validation images.

    Features are taken in the precision of measuring, as the probe will be measured: a CPU measures in
    float32, and there a head that was fitted to bfloat16 features can be a point worse.

    Args:
        model: On `device`; its features are taken as they are.
        images: `train` and `val`.
        classes: Number of classes.
        class_weights: (classes,) weights of the loss, or None.
        data: The network's data config.
        device: Where the network is.
        progress: Called after every batch.
    """

    def features_of(part: Images) -> tuple[Tensor, Tensor]:
        found = infer(take_features(model), part.pixels, data, device, progress=progress, text="probing")
        return found, part.labels

    train_rows, val_rows = features_of(images["train"]), features_of(images["val"])
    return ranks.from_first(lambda: fit_probe(train_rows, val_rows, classes, class_weights))


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
    head: list[Tensor] = [probe.weight, probe.bias]
    accuracy: float | None = probe.val_top1
    if RECIPES[options.recipe].head == "random":  # as torch starts a linear layer
        bound = probe.weight.shape[1] ** -0.5
        generator = torch.Generator().manual_seed(options.seed)
        head = [torch.empty_like(part).uniform_(-bound, bound, generator=generator) for part in head]
        accuracy = None
    values = [*(parameter.detach().float().cpu().clone() for parameter in parameters), *head]
    return State(
        trained=values,
        best=values,
        probe=(probe.weight, probe.bias),
        probe_val_top1=probe.val_top1,
        penalty=probe.penalty,
        history=[Epoch(0, None, accuracy)],
        fixed={name: tensor.cpu().clone() for name, tensor in (fixed or {}).items()},
    )


def learn(
    model: nn.Module,
    parts: Sequence[Part],
    state: State,
    images: dict[str, Images],
    data: dict[str, Any],
    options: AdaptOptions,
    weights: Tensor | None,
    solve: Callable[[], Probe],
    **training: Any,
) -> State:
    """Train from `state`, then solve the head once more where the recipe starts from the linear probe.

    Args:
        model: Frozen but for what `parts` hold, on its device, in eval mode.
        parts: What is trained beside the head; none where it is the head alone.
        state: From `start_state`, or of a run to be continued.
        images: `train` and `val`.
        data: The network's data config.
        options: Recipe and data options.
        weights: (classes,) of the loss, or None.
        solve: The linear probe on the features that the network has then.
        training: Further options of `train`.

    Raises:
        RecastError: The loss is no longer finite.
    """
    state = train(model, parts, state, images["train"], images["val"], data, options, weights, **training)
    parameters = [parameter for part in parts for parameter in part.parameters]
    # without parameters the features never moved, and the solution is what the head started from
    return refit(parameters, state, solve) if parameters and RECIPES[options.recipe].head == "probe" else state


def refit(parameters: list[nn.Parameter], state: State, solve: Callable[[], Probe]) -> State:
    """The head of the best epoch solved to convergence, where validation is better for it.

    The head of an epoch was solved on flipped and cropped pictures, while the parameters still moved. Where no epoch is
    better than the linear probe, the last one's features are tried.

    Args:
        parameters: Of the model; they are left at that epoch's.
        state: Of the finished training.
        solve: The linear probe on the features that the model has then.
    """
    number, values = state.best_epoch, state.best
    if number == 0:
        number, values = state.history[-1].number, state.trained
    with torch.no_grad():
        for parameter, tensor in zip(parameters, values, strict=False):
            parameter.copy_(tensor)
    probe = solve()
    if probe.val_top1 <= (state.val_top1 or 0.0):
        return state
    best = [*values[:-2], probe.weight, probe.bias]
    return replace(state, best=best, best_epoch=number, refit_val_top1=probe.val_top1)
