"""The training loop: coefficients and head by AdamW, the epoch chosen by validation accuracy alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import Images, normalise
from recast_cli.engine.metrics import top_k
from recast_cli.engine.network import features
from recast_cli.engine.options import AdaptOptions
from recast_cli.engine.run import Progress, augment, batches, infer, precision


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; epoch 0 is the linear probe. `loss` is the mean over the epoch's images."""

    number: int
    loss: float | None
    val_top1: float
    images_per_second: float | None = None


@dataclass
class State:
    """All that a killed run needs to go on: tensors of the trained values, of AdamW, and of the best epoch.

    Attributes:
        trained: Coefficients (K, n) of every module, then head weight and bias.
        optimizer: AdamW's state dict; None before the first step.
        best: Like `trained`, at the best epoch so far.
        probe: The linear probe's weight and bias, measured on test beside the task; `penalty` its regularisation.
        best_epoch: Number of that epoch.
        history: Every epoch so far.
    """

    trained: list[Tensor]
    best: list[Tensor]
    probe: tuple[Tensor, Tensor]
    penalty: float
    best_epoch: int = 0
    optimizer: dict[str, Any] | None = None
    history: list[Epoch] = field(default_factory=list)


def train(
    model: nn.Module,
    coefficients: list[nn.Parameter],
    state: State,
    train_images: Images,
    val_images: Images,
    data: dict[str, Any],
    options: AdaptOptions,
    class_weights: Tensor | None = None,
    after_epoch: Callable[[State], None] | None = None,
    progress: Progress | None = None,
) -> State:
    """Train from `state` to the last epoch.

    Args:
        model: Attached, frozen but for its coefficients, on its device, in eval mode: batch norm learns nothing.
        coefficients: The parameters (K, n) of the model.
        state: Where to start; with a history of one epoch, the linear probe.
        train_images: What is learnt.
        val_images: What chooses the epoch. The earliest of equal ones wins.
        data: The network's data config.
        options: The options.
        class_weights: (classes,) weights of the loss.
        after_epoch: Called with the state after every epoch.
        progress: Called after every step.

    Raises:
        RecastError: The loss is no longer finite.
    """
    device = coefficients[0].device
    head = [nn.Parameter(tensor.to(device, copy=True)) for tensor in state.trained[-2:]]
    parameters = [*coefficients, *head]
    with torch.no_grad():
        for parameter, tensor in zip(coefficients, state.trained, strict=False):
            parameter.copy_(tensor)
    # no weight decay: it would pull the coefficients to zero, and their source value is 1
    groups = [{"params": coefficients, "lr": options.lr}, {"params": head, "lr": options.head_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)
    weights = None if class_weights is None else class_weights.to(device)

    def logits(images: Tensor) -> Tensor:
        return F.linear(features(model, images), head[0], head[1])

    count = len(train_images)
    steps = math.ceil(count / options.batch_size)
    for number in range(state.history[-1].number + 1, options.epochs + 1):
        # one generator an epoch: a run that was killed draws the same order and crops as one that was not
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
        order = torch.randperm(count, generator=generator)
        total, start = torch.zeros((), device=device), time.perf_counter()
        for step, part in enumerate(batches(count, options.batch_size)):
            chosen = order[part]
            pixels, labels = train_images.pixels[chosen].to(device), train_images.labels[chosen].to(device)
            done = ((number - 1) * steps + step) / (options.epochs * steps)
            for group, lr in zip(optimizer.param_groups, (options.lr, options.head_lr), strict=True):
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
            with precision(device):
                loss = F.cross_entropy(logits(augment(normalise(pixels, data), generator)), labels, weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(chosen)
            if progress:
                progress((number - 1) * count + part.stop, options.epochs * count, f"epoch {number}/{options.epochs}")
        mean_loss = float(total) / count
        seconds = time.perf_counter() - start
        if not math.isfinite(mean_loss):
            raise RecastError(f"The loss is no longer finite in epoch {number}", "Lower --lr or --head-lr.")
        accuracy = top_k(infer(logits, val_images.pixels, data, device), val_images.labels)
        epoch = Epoch(number, mean_loss, accuracy, count / seconds)
        state = advance(state, epoch, parameters, optimizer)
        if after_epoch:
            after_epoch(state)
    return state


def advance(state: State, epoch: Epoch, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """The state after an epoch; the best one is replaced only by a better validation accuracy."""
    trained = [parameter.detach().float().cpu().clone() for parameter in parameters]
    better = epoch.val_top1 > max(past.val_top1 for past in state.history)
    return replace(
        state,
        trained=trained,
        optimizer=optimizer.state_dict(),
        best=trained if better else state.best,
        best_epoch=epoch.number if better else state.best_epoch,
        history=[*state.history, epoch],
    )
