"""The training loop: coefficients, or what else a network trains, and its head; validation alone chooses the epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine import ranks, run
from recast_cli.engine.batch import Accumulator, fitting_batch
from recast_cli.engine.errors import RecastError
from recast_cli.engine.frozen_norms import frozen_norms
from recast_cli.engine.gradients import cheap_gradients
from recast_cli.engine.images import Images, normalise
from recast_cli.engine.metrics import top_k
from recast_cli.engine.network import features
from recast_cli.engine.options import RECIPES, AdaptOptions
from recast_cli.engine.probe import solve_head
from recast_cli.engine.run import (
    Progress,
    augment,
    batches,
    draw_windows,
    infer,
    precision,
    resident,
    take,
    take_features,
)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; epoch 0 is the start. `loss` is the mean over the epoch's images.

    `val_top1` is None for a random head at the start, which nobody measures.
    `seconds` of wall time are the whole epoch's, validation included; `images_per_second` are of its training.
    """

    number: int
    loss: float | None
    val_top1: float | None
    images_per_second: float | None = None
    seconds: float | None = None


@dataclass
class State:
    """All that a killed run needs to go on: tensors of the trained values, of AdamW, and of the best epoch.

    Attributes:
        trained: What is trained of the network (coefficients (K, n) of every module, an adapter's parameters), then
            head weight and bias.
        best: Like `trained`, at the best epoch so far.
        probe: The linear probe's weight and bias, measured on test beside the task.
        probe_val_top1: Its validation accuracy; `penalty` its regularisation.
        best_epoch: Number of that epoch.
        batch_size: Images a step, once it is known.
        optimizer: AdamW's state dict; None before the first step.
        history: Every epoch so far.
        fixed: What of an adapter was chosen before training and stays, by name.
        refit_val_top1: Validation accuracy with the head that `refit` solved for; None where the trained one was kept.
    """

    trained: list[Tensor]
    best: list[Tensor]
    probe: tuple[Tensor, Tensor]
    probe_val_top1: float
    penalty: float
    best_epoch: int = 0
    batch_size: int | None = None
    optimizer: dict[str, Any] | None = None
    history: list[Epoch] = field(default_factory=list)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    refit_val_top1: float | None = None

    @property
    def val_top1(self) -> float | None:
        """Validation accuracy of `best`."""
        return self.history[self.best_epoch].val_top1 if self.refit_val_top1 is None else self.refit_val_top1


class Part(NamedTuple):
    """Parameters of a network that are trained at one learning rate."""

    parameters: list[nn.Parameter]
    lr: float


def train(
    model: nn.Module,
    parts: Sequence[Part],
    state: State,
    train_images: Images,
    val_images: Images,
    data: dict[str, Any],
    options: AdaptOptions,
    class_weights: Tensor | None = None,
    *,
    compiled: bool = False,
    after_epoch: Callable[[State], None] | None = None,
    progress: Progress | None = None,
) -> State:
    """Train from `state` until validation stops improving, or to the last epoch.

    Args:
        model: Frozen but for what `parts` hold, on its device, in eval mode: batch norm learns nothing.
        parts: Parameters of the model: coefficients (K, n), an adapter's; none where the head alone is trained.
        state: Where to start.
        train_images: What is learnt.
        val_images: What chooses the epoch. The earliest of equal ones wins.
        data: The network's data config.
        options: The options.
        class_weights: (classes,) weights of the loss.
        compiled: Compile the network first, which pays in long runs.
        after_epoch: Called with the state after every epoch.
        progress: Called after every step.

    Raises:
        RecastError: The loss is no longer finite.
    """
    device, recipe = next(model.parameters()).device, RECIPES[options.recipe]
    dtype = run.training_precision(model, device, options.precision)
    head = [nn.Parameter(tensor.to(device, copy=True)) for tensor in state.trained[-2:]]
    parameters = [parameter for part in parts for parameter in part.parameters]
    trained = [*parameters, *head]
    with torch.no_grad():
        for parameter, tensor in zip(parameters, state.trained, strict=False):
            parameter.copy_(tensor)
    parts = [*parts, Part(head, options.head_lr)]
    groups = [{"params": part.parameters, "lr": part.lr} for part in parts]
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=device.type in ("cpu", "cuda"))
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)

    pixels, val_pixels = resident(train_images.pixels, device), resident(val_images.pixels, device)
    labels = train_images.labels.to(pixels.device)
    weights = torch.ones(len(head[1])) if class_weights is None else class_weights
    image_weights, weights = weights.to(pixels.device)[labels], weights.to(device)
    count = len(labels)

    # of every image, as it was when it was last trained on
    seen = torch.zeros(count, head[0].shape[1], device=device) if recipe.head == "probe" else None

    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        found = features(model, images)
        return found, F.linear(found, head[0], head[1])

    forward = run.compiled(outputs) if compiled else outputs

    def share_of_loss(order: Tensor, windows: Tensor, weight: Tensor, places: Tensor) -> Tensor:
        """What the images at some places of the epoch's order add to their batch's loss; `weight` is the batch's."""
        rows = order[places]
        images = augment(normalise(take(pixels, rows, device), data), windows[places].to(device, non_blocking=True))
        wanted = labels[rows].to(device, non_blocking=True)
        with precision(device, dtype):
            found, logits = forward(images)
            loss = F.cross_entropy(logits, wanted, weights, reduction="sum") / weight
        if seen is not None:
            seen[rows.to(device, non_blocking=True)] = found.detach().float()
        return loss

    def measure() -> float:
        """Validation accuracy after an epoch, with the head solved for the epoch's features where that is better.

        A few steps may leave a head behind features that change under it.
        """
        found = infer(take_features(model), val_pixels, data, device, dtype=dtype)

        def accuracy(head: Sequence[Tensor]) -> float:
            return top_k(F.linear(found, *(part.detach().cpu() for part in head)), val_images.labels)

        stepped = accuracy(head)
        if seen is None:
            return stepped
        ranks.add([seen])  # each process has the rows of its images, and zeros elsewhere
        solved = ranks.from_first(lambda: solve_head(seen, labels, state.penalty, head, class_weights))
        if (better := accuracy(solved)) <= stepped:
            return stepped
        with torch.no_grad():
            for parameter, tensor in zip(head, solved, strict=True):
                parameter.copy_(tensor)
                optimizer.state.pop(parameter, None)  # it was of another head
        return better

    def trial(size: int) -> None:
        places = torch.arange(size, device=pixels.device)
        windows = draw_windows(size, torch.Generator()).to(pixels.device)
        loss = share_of_loss(places % count, windows, torch.ones((), device=device), places)
        torch.autograd.grad(loss, trained)

    with cheap_gradients(model), frozen_norms(model), run.quick_attention(model, device, dtype):
        if state.batch_size is None:
            state = replace(state, batch_size=choose_batch(options, trial, count, device))
        assert state.batch_size is not None
        accumulator = Accumulator(math.ceil(state.batch_size / ranks.world()))
        steps = math.ceil(count / state.batch_size)
        while not finished(state, options):
            start, number = time.perf_counter(), state.history[-1].number + 1
            # one generator an epoch: a run that was killed draws the same order and windows as one that was not
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
            order = torch.randperm(count, generator=generator).to(pixels.device)
            windows = draw_windows(count, generator).to(pixels.device)
            total = torch.zeros((), device=device)
            if seen is not None:
                seen.zero_()
            for step, part in enumerate(batches(count, state.batch_size)):
                factor = SCHEDULES[recipe.schedule](number - 1 + step / steps, options.epochs)
                for group, own in zip(optimizer.param_groups, parts, strict=True):
                    group["lr"] = own.lr * factor
                batch_weight = image_weights[order[part]].sum().to(device, non_blocking=True)
                loss = partial(share_of_loss, order, windows, batch_weight)
                places = torch.arange(part.start, part.stop, device=pixels.device)
                value, gradients = accumulator.gradients(loss, ranks.mine(places), trained)
                ranks.add([value, *gradients])
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                total += value * len(places)
                if progress:
                    progress(
                        (number - 1) * count + part.stop, options.epochs * count, f"epoch {number}/{options.epochs}"
                    )
            epoch_loss = float(total) / count  # here the CPU waits for the device, once an epoch
            training = time.perf_counter() - start
            if not math.isfinite(epoch_loss):
                raise RecastError(f"The loss is no longer finite in epoch {number}", "Lower --lr or --head-lr.")
            accuracy = measure()
            epoch = Epoch(number, epoch_loss, accuracy, count / training, time.perf_counter() - start)
            state = advance(state, epoch, trained, optimizer)
            if after_epoch:
                after_epoch(state)
    return state


SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "cosine": lambda epochs, total: 0.5 * (1 + math.cos(math.pi * epochs / total)),
    "step": lambda epochs, total: 0.1 ** (epochs // 33),
}
"""Factor of a learning rate by the epochs that are done, with their fraction, and the epochs in all."""


def finished(state: State, options: AdaptOptions) -> bool:
    """Whether the last epoch is reached, or validation has not improved for as long as patience lasts."""
    number = state.history[-1].number
    return number >= options.epochs or 0 < options.patience <= number - state.best_epoch


def choose_batch(options: AdaptOptions, trial: Callable[[int], None], count: int, device: torch.device) -> int:
    """Images a step: as the options say, or as many as fit every process's device."""
    if options.batch_size != "auto":
        return int(options.batch_size)
    default = RECIPES[options.recipe].batch_size
    size = fitting_batch(trial, count // ranks.world(), device, math.ceil(default / ranks.world()))
    return ranks.from_first(lambda: size * ranks.world())


def advance(state: State, epoch: Epoch, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """The state after an epoch; the best one is replaced only by a better validation accuracy."""
    trained = [parameter.detach().float().cpu().clone() for parameter in parameters]
    assert epoch.val_top1 is not None
    better = epoch.val_top1 > max((past.val_top1 for past in state.history if past.val_top1 is not None), default=-1.0)
    return replace(
        state,
        trained=trained,
        optimizer=optimizer.state_dict(),
        best=trained if better else state.best,
        best_epoch=epoch.number if better else state.best_epoch,
        history=[*state.history, epoch],
    )
