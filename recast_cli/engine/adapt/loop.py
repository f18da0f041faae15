"""The training loop: coefficients, or what else a network trains, and its head; validation alone chooses the epoch."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.adapt.cross_fit import cross_fitted
from recast_cli.engine.adapt.learner import Learner
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


class TrainingData(NamedTuple):
    """What is learned from, and how: of the `images`, `train` are learned, `val` choose the epoch, see `advance`."""

    images: dict[str, Images]
    classes: int
    preprocessing: Preprocessing
    options: AdaptOptions

    @property
    def class_weights(self) -> Tensor | None:
        """Weights (classes,) of the loss where the options want them: by inverse frequency, mean 1 over the images.

        A class without images gets 0.
        """
        if self.options.class_weights == "none":
            return None
        labels = self.images["train"].labels
        counts = torch.bincount(labels, minlength=self.classes).float()
        return torch.where(counts > 0, len(labels) / (self.classes * counts.clamp_min(1)), torch.zeros(()))


def train(
    learner: Learner,
    state: State,
    training_data: TrainingData,
    *,
    compiled: bool = False,
    save: Callable[[State], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> State:
    """Train from `state` until validation stops improving, or to the last epoch.

    A learner without parameters has its head trained alone. To compile the network first pays in long runs. After every
    epoch `save` is called with the state, then `on_epoch` with what it came to; `progress` after every step.

    Raises:
        RecastError: The loss is no longer finite.
    """
    images, _, preprocessing, options = training_data
    recipe, model, device = RECIPES[options.recipe], learner.model, learner.device
    dtype = training_precision(model, device, options.precision)

    # what is trained, and its optimisers
    head = Head(*(nn.Parameter(part.to(device, copy=True)) for part in state.trained.head))
    trained, parameters = Trained(learner.parameters, head), [*learner.parameters, *head]
    put(learner.parameters, state.trained.values)
    optimizers = learner.optimizers(head, options)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for optimizer, before in zip(optimizers, state.optimizers or (), strict=False):
        optimizer.load_state_dict(before)

    # what it is trained on; labels, order and crops lie where the images do
    pixels, val_pixels = (resident(images[part].pixels, device) for part in ("train", "val"))
    place, count, val_labels = pixels.device, len(pixels), images["val"].labels
    labels, class_weights = images["train"].labels.to(place), training_data.class_weights
    weights = torch.ones(training_data.classes) if class_weights is None else class_weights
    image_weights = weights.to(place)[labels]
    # features (count, width) of every image, as it was when it was last trained on
    seen = torch.zeros(count, head.weight.shape[1], device=device) if recipe.head == "probe" else None

    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        found = features(model, images)
        return found, head(found if learner.judges is None else found.detach())

    network = compile_function(outputs) if compiled else outputs

    def loss_of(pixels: Tensor, labels: Tensor, crops: Tensor, shares: Tensor, rows: Tensor) -> Tensor:
        """What some images add to the loss of their batch: `shares` (B,) are theirs in its mean."""
        augmented = augment(normalise(pixels, preprocessing), crops)
        with precision(device, dtype):
            found, logits = network(augmented)
            loss = (F.cross_entropy(logits, labels, reduction="none") * shares).sum()
            if learner.judges is not None:  # what the head learns leaves the network alone
                loss = loss - loss.detach() + cross_fitted(learner.judges, found, labels, shares, rows)
        if seen is not None:
            seen[rows] = found.detach().float()
        return loss

    def inputs(rows: Tensor, crops: Tensor, weight: Tensor) -> list[Tensor]:
        """What `loss_of` takes of the images `rows`, on the device; `weight` is the sum over their whole batch."""
        parts = [labels[rows], crops, image_weights[rows] / weight, rows]
        return [take(pixels, rows, device), *(each.to(device, non_blocking=True) for each in parts)]

    def try_batch(size: int) -> None:
        """The work of a step of so many images, which changes nothing."""
        rows, crops = torch.arange(size, device=place) % count, draw_crops(size, torch.Generator()).to(place)
        loss = loss_of(*inputs(rows, crops, torch.ones((), device=place)))
        torch.autograd.grad(loss, parameters, materialize_grads=True)

    with cheap_gradients(model), frozen_norms(model), quick_attention(model, device, dtype):
        size = state.batch_size or choose_batch(options, try_batch, count, device)
        accumulator = Accumulator(loss_of, parameters, math.ceil(size / distributed.world()))
        while not is_finished(state, options):
            start, number = time.perf_counter(), state.history[-1].number + 1
            # one generator an epoch: a run that was killed draws the same order and crops as one that was not
            generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
            order, crops = torch.randperm(count, generator=generator).to(place), draw_crops(count, generator).to(place)
            total, steps = torch.zeros((), device=device), math.ceil(count / size)
            if seen is not None:
                seen.zero_()
            for step, rows in enumerate(batches(count, size)):
                factor = SCHEDULES[recipe.schedule](number - 1 + step / steps, options.epochs)
                for optimizer, own in zip(optimizers, rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, own, strict=True):
                        group["lr"] = rate * factor
                weight = image_weights[order[rows]].sum()
                loss, gradients = accumulator.gradients(
                    *inputs(distributed.mine(order[rows]), distributed.mine(crops[rows]), weight)
                )
                distributed.add([loss, *gradients])
                learner.share(gradients)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                for optimizer in optimizers:
                    optimizer.step()
                total += loss * (rows.stop - rows.start)
                if progress:
                    done = (number - 1) * count + rows.stop
                    progress(done, options.epochs * count, f"epoch {number}/{options.epochs}")
            mean_loss = float(total) / count  # here the CPU waits for the device, once an epoch
            training = time.perf_counter() - start
            if not math.isfinite(mean_loss):
                hint = f"Lower {option('lr')} or {option('head_lr')}."
                raise RecastError(f"The loss is no longer finite in epoch {number}", hint)

            # validation judges nearly the head of a run that ended here, see `refit_head`: its solved half is for the
            # features that the epoch's steps saw, which need no pass over the images
            found = infer(take_features(model), val_pixels, preprocessing, device, dtype=dtype)
            judged = Head(*(part.detach().cpu() for part in head))
            if seen is not None:
                distributed.add([seen])  # each process has the rows of its images, and zeros elsewhere
                solve = partial(solve_head, seen, labels, state.probe.penalty, judged, class_weights)
                judged = halfway(judged, distributed.from_first(solve))
            accuracy = top_k(judged(found), val_labels)
            epoch = Epoch(number, mean_loss, accuracy, count / training, time.perf_counter() - start)
            state = advance(replace(state, batch_size=size), epoch, trained, optimizers, len(val_labels))
            if save:
                save(state)
            if on_epoch:
                on_epoch(epoch)
    return state


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
