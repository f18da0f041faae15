"""The training loop: coefficients, or what else a network trains, and its head; validation alone chooses the epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.adapt.linear_probe import halfway, solve_head
from recast_cli.engine.adapt.state import Epoch, State, Trained, advance, is_finished, put
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.errors import RecastError, option
from recast_cli.engine.images.decode import Images
from recast_cli.engine.images.preprocessing import Preprocessing
from recast_cli.engine.images.transforms import augment, draw_crops, normalise
from recast_cli.engine.measure.metrics import top_k
from recast_cli.engine.model.coefficient_gradients import cheap_gradients
from recast_cli.engine.model.frozen_norms import frozen_norms
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.accumulate import Accumulator, fitting_batch
from recast_cli.engine.runtime.device import compile_function
from recast_cli.engine.runtime.inference import batches, infer, resident, take, take_features
from recast_cli.engine.runtime.precision import precision, quick_attention, training_precision
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import RECIPES, AdaptOptions


class Part(NamedTuple):
    """Parameters of a network that are trained at one learning rate."""

    parameters: Sequence[Tensor]
    lr: float


class TrainingData(NamedTuple):
    """What is learned from, and how.

    Attributes:
        images: `train` is what is learned, `val` chooses the epoch, see `advance`.
        preprocessing: The network's.
        options: The options.
        class_weights: (classes,) weights of the loss, or None.
    """

    images: dict[str, Images]
    preprocessing: Preprocessing
    options: AdaptOptions
    class_weights: Tensor | None = None


def train(
    model: nn.Module,
    parts: Sequence[Part],
    state: State,
    training_data: TrainingData,
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
        training_data: What is learned.
        compiled: Compile the network first, which pays in long runs.
        after_epoch: Called with the state after every epoch.
        progress: Called after every step.

    Raises:
        RecastError: The loss is no longer finite.
    """
    loop, options = Loop(model, parts, state, training_data, compiled), training_data.options
    with cheap_gradients(model), frozen_norms(model), quick_attention(model, loop.device, loop.dtype):
        if state.batch_size is None:
            state = replace(state, batch_size=choose_batch(options, loop.try_batch, loop.count, loop.device))
        assert state.batch_size is not None
        accumulator = Accumulator(
            loop.share_of_loss, loop.parameters, math.ceil(state.batch_size / distributed.world())
        )
        while not is_finished(state, options):
            start, number = time.perf_counter(), state.history[-1].number + 1
            loss = loop.steps(number, state.batch_size, accumulator, progress)
            training = time.perf_counter() - start
            if not math.isfinite(loss):
                hint = f"Lower {option('lr')} or {option('head_lr')}."
                raise RecastError(f"The loss is no longer finite in epoch {number}", hint)
            accuracy = loop.measure(state.probe.penalty)
            epoch = Epoch(number, loss, accuracy, loop.count / training, time.perf_counter() - start)
            state = advance(state, epoch, loop.trained, loop.optimizer, len(loop.val_labels))
            if after_epoch:
                after_epoch(state)
    return state


class Loop:
    """What stays from epoch to epoch: images and parameters on their device, and the optimiser.

    Arguments as of `train`.

    Attributes:
        trained: What `parts` hold, and the head; `parameters` are all of it.
        count: Training images.
        seen: Features (count, width) of every image, as it was when it was last trained on; None where the head is
            trained alone.
    """

    def __init__(
        self, model: nn.Module, parts: Sequence[Part], state: State, training_data: TrainingData, compiled: bool = False
    ) -> None:
        images, self.preprocessing, self.options, self.class_weights = training_data
        options = self.options
        self.model, self.recipe = model, RECIPES[options.recipe]
        self.device = device = next(model.parameters()).device
        self.dtype = training_precision(model, device, options.precision)
        self.head = Head(*(nn.Parameter(part.to(device, copy=True)) for part in state.trained.head))
        self.trained = Trained([parameter for part in parts for parameter in part.parameters], self.head)
        put(self.trained.values, state.trained.values)
        self.parameters = [*self.trained.values, *self.head]
        self.parts = [*parts, Part(self.head, options.head_lr)]
        groups = [{"params": part.parameters, "lr": part.lr} for part in self.parts]
        self.optimizer = torch.optim.AdamW(
            groups, weight_decay=self.recipe.weight_decay, fused=device.type in ("cpu", "cuda")
        )
        if state.optimizer is not None:
            self.optimizer.load_state_dict(state.optimizer)

        self.pixels, self.val_pixels = (resident(images[part].pixels, device) for part in ("train", "val"))
        self.labels, self.val_labels = images["train"].labels.to(self.pixels.device), images["val"].labels
        self.count = len(self.labels)
        weights = torch.ones(len(self.head.bias)) if self.class_weights is None else self.class_weights
        self.image_weights = weights.to(self.pixels.device)[self.labels]
        solves = self.recipe.head == "probe"
        self.seen = torch.zeros(self.count, self.head.weight.shape[1], device=device) if solves else None
        head = self.head

        def outputs(images: Tensor) -> tuple[Tensor, Tensor]:  # no method: a cycle would keep the device's memory
            found = features(model, images)
            return found, head(found)

        self.outputs = compile_function(outputs) if compiled else outputs

    def share_of_loss(self, pixels: Tensor, labels: Tensor, crops: Tensor, shares: Tensor, rows: Tensor) -> Tensor:
        """What some images of a batch add to its loss.

        Args:
            pixels: (B, 3, H, W) uint8.
            labels: (B,).
            crops: (B, 2, 3), as `draw_crops` gives them.
            shares: (B,), of each image in the batch's mean.
            rows: (B,), which images they are.
        """
        images = augment(normalise(pixels, self.preprocessing), crops)
        with precision(self.device, self.dtype):
            found, logits = self.outputs(images)
            loss = (F.cross_entropy(logits, labels, reduction="none") * shares).sum()
        if self.seen is not None:
            self.seen[rows] = found.detach().float()
        return loss

    def batch(self, rows: Tensor, crops: Tensor, weight: Tensor) -> list[Tensor]:
        """What `share_of_loss` takes of the images `rows`, on the device.

        Args:
            rows: (B,), where the images are.
            crops: (B, 2, 3).
            weight: Sum of the weights of all images of the batch, whichever process has them.
        """
        parts = [self.labels[rows], crops, self.image_weights[rows] / weight, rows]
        return [take(self.pixels, rows, self.device), *(each.to(self.device, non_blocking=True) for each in parts)]

    def steps(self, number: int, batch_size: int, accumulator: Accumulator, progress: Progress | None) -> float:
        """One epoch of steps; returns the mean loss over its images."""
        # one generator an epoch: a run that was killed draws the same order and crops as one that was not
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + number)
        order = torch.randperm(self.count, generator=generator).to(self.pixels.device)
        crops = draw_crops(self.count, generator).to(self.pixels.device)
        steps, epochs = math.ceil(self.count / batch_size), self.options.epochs
        total = torch.zeros((), device=self.device)
        if self.seen is not None:
            self.seen.zero_()
        for step, part in enumerate(batches(self.count, batch_size)):
            factor = SCHEDULES[self.recipe.schedule](number - 1 + step / steps, epochs)
            for group, own in zip(self.optimizer.param_groups, self.parts, strict=True):
                group["lr"] = own.lr * factor
            weight = self.image_weights[order[part]].sum()
            value, gradients = accumulator.gradients(
                *self.batch(distributed.mine(order[part]), distributed.mine(crops[part]), weight)
            )
            distributed.add([value, *gradients])
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            total += value * (part.stop - part.start)
            if progress:
                progress((number - 1) * self.count + part.stop, epochs * self.count, f"epoch {number}/{epochs}")
        return float(total) / self.count  # here the CPU waits for the device, once an epoch

    def measure(self, penalty: float) -> float:
        """Validation accuracy after an epoch, of nearly the head of a run that ended here, see `refit_head`.

        Its solved half is for the features that the epoch's steps saw, which need no pass over the images.

        Args:
            penalty: Of the linear probe.
        """
        found = infer(take_features(self.model), self.val_pixels, self.preprocessing, self.device, dtype=self.dtype)
        head = Head(*(part.detach().cpu() for part in self.head))
        if (seen := self.seen) is not None:
            distributed.add([seen])  # each process has the rows of its images, and zeros elsewhere
            solve = partial(solve_head, seen, self.labels, penalty, head, self.class_weights)
            head = halfway(head, distributed.from_first(solve))
        return top_k(head(found), self.val_labels)

    def try_batch(self, size: int) -> None:
        """The work of a step of so many images, which changes nothing."""
        rows = torch.arange(size, device=self.pixels.device) % self.count
        crops = draw_crops(size, torch.Generator()).to(self.pixels.device)
        loss = self.share_of_loss(*self.batch(rows, crops, torch.ones((), device=self.pixels.device)))
        torch.autograd.grad(loss, self.parameters, materialize_grads=True)


SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "cosine": lambda epochs, total: 0.5 * (1 + math.cos(math.pi * epochs / total)),
    "step": lambda epochs, total: 0.1 ** (epochs // 33),
}
"""Factor of a learning rate by the epochs that are done, with their fraction, and the epochs in all."""


def choose_batch(options: AdaptOptions, trial: Callable[[int], None], count: int, device: torch.device) -> int:
    """Images a step: as the options say, or as many as fit every process's device."""
    if options.batch_size != "auto":
        return int(options.batch_size)
    default = RECIPES[options.recipe].batch_size
    size = fitting_batch(trial, count // distributed.world(), device, math.ceil(default / distributed.world()))
    return distributed.from_first(lambda: size * distributed.world())
