"""What a run of training has come to after an epoch: all that one that was killed needs to go on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions

CHOSEN = ("places", "units", "longest")
"""Under these names a state has what coefficients were chosen, beside what of an adapter was."""


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


class Trained(NamedTuple):
    """What is trained: coefficients (K, n) of every module in layout order, then an adapter's parameters; the head."""

    values: Sequence[Tensor]
    head: Head

    def copy(self) -> Trained:
        """As it is now: float32 on the CPU."""
        values, head = ([part.detach().float().cpu().clone() for part in parts] for parts in self)
        return Trained(values, Head(*head))


@dataclass
class State:
    """All that a killed run needs to go on: what was trained, the optimisers' tensors, and the best epoch.

    Attributes:
        trained: After the last epoch.
        best: After the epoch that validation chooses, see `advance`; at last with the final head.
        probe: The linear probe, measured on test beside the task.
        best_epoch: Number of the epoch that `best` is of.
        batch_size: Images a step, once it is known.
        optimizers: Their state dicts; None before the first step.
        history: Every epoch so far.
        fixed: What was chosen before training and stays, by name: of an adapter, and of coefficients.
        final_val_top1: Validation accuracy with the final head; None while `best` has the trained one.
    """

    trained: Trained
    best: Trained
    probe: Probe
    best_epoch: int = 0
    batch_size: int | None = None
    optimizers: list[dict[str, Any]] | None = None
    history: list[Epoch] = field(default_factory=list)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    final_val_top1: float | None = None

    @property
    def val_top1(self) -> float | None:
        """Validation accuracy of `best`."""
        return self.history[self.best_epoch].val_top1 if self.final_val_top1 is None else self.final_val_top1

    @property
    def images_per_second(self) -> float | None:
        """Mean over the epochs that trained; None before the first."""
        rates = [epoch.images_per_second for epoch in self.history if epoch.images_per_second]
        return round(sum(rates) / len(rates), 1) if rates else None


@torch.no_grad()
def put(parameters: Sequence[Tensor], values: Iterable[Tensor]) -> None:
    """Write values, of whatever shape, into parameters of as many numbers."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value.reshape(parameter.shape))


def is_finished(state: State, options: AdaptOptions) -> bool:
    """Whether the last epoch is reached, or validation has not improved for as long as patience lasts."""
    number = state.history[-1].number
    peak = max(state.history, key=accuracy_of).number
    return number >= options.epochs or 0 < options.patience <= number - peak


def accuracy_of(epoch: Epoch) -> float:
    """On validation; less than any where it was not measured."""
    return -1.0 if epoch.val_top1 is None else epoch.val_top1


def as_good(accuracy: float, highest: float, images: int) -> bool:
    """Whether an accuracy on so many images is within one standard error of the highest.

    Two images more are right and two are wrong, or where all are right one less would always be too few (Agresti and
    Coull 1998, https://doi.org/10.1080/00031305.1998.10480550).
    """
    share = (highest * images + 2) / (images + 4)
    return accuracy >= highest - math.sqrt(share * (1 - share) / (images + 4))


def advance(
    state: State, epoch: Epoch, trained: Trained, optimizers: list[torch.optim.Optimizer], images: int
) -> State:
    """The state after an epoch, which validation chooses if it is as good as any, as far as so few images can tell.

    That is: no more than one standard error below the best (Breiman et al. 1984, Classification and Regression Trees).
    The highest of several accuracies on a few hundred images is mostly luck, and an early epoch that had it has learned
    less; that holds for the start, too, whose penalty was chosen for its accuracy on the same images. `images` is how
    many the accuracy of an epoch was measured on.
    """
    now, history = trained.copy(), [*state.history, epoch]
    chosen = as_good(accuracy_of(epoch), max(map(accuracy_of, history)), images)
    return replace(
        state,
        trained=now,
        optimizers=[optimizer.state_dict() for optimizer in optimizers],
        best=now if chosen else state.best,
        best_epoch=epoch.number if chosen else state.best_epoch,
        history=history,
    )
