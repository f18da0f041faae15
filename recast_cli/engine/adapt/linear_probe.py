"""The linear probe: multinomial logistic regression on frozen features, solved to convergence.

It is epoch 0 of `adapt` and the baseline that a task has to beat, so it gets every care: standardised features,
float64, L-BFGS with a strong Wolfe line search, and a regularisation chosen on validation from a grid that grows
until neither of its ends is chosen.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.measure.metrics import top_k
from recast_cli.engine.task.head import Head

START_GRID = (-3, -2, -1)
"""First exponents tried: penalties of 10^e times half the squared norm of the weights."""
LIMITS = (-9, 4)
"""Beyond these exponents the solution no longer changes, so the grid stops growing."""


class Probe(NamedTuple):
    """A head, the penalty that was chosen for it, and its accuracy on the images that chose."""

    head: Head
    penalty: float
    val_top1: float


def fit_probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], classes: int, class_weights: Tensor | None = None
) -> Probe:
    """Fit the probe.

    Args:
        train: Features (N, D) and labels (N,).
        val: The same for validation; the best top-1 chooses the penalty, and the lower loss where they tie.
        classes: Number of classes.
        class_weights: (classes,), weights of the loss.
    """
    (features, scaling), labels = standardised(train[0]), train[1].cpu()
    val_features, val_labels = scaling(val[0]), val[1].cpu()
    weights = None if class_weights is None else class_weights.double().cpu()

    solved: dict[int, tuple[tuple[float, float], Tensor]] = {}

    def solve(exponent: int) -> None:
        near = min(solved, key=lambda other: abs(other - exponent), default=None)
        start = torch.zeros(classes, features.shape[1] + 1).double() if near is None else solved[near][1]
        solution = logistic_regression(features, labels, 10.0**exponent, start, weights)
        logits = F.linear(val_features, solution[:, :-1], solution[:, -1])
        quality = (top_k(logits, val_labels), -float(F.cross_entropy(logits, val_labels)))
        solved[exponent] = (quality, solution)

    for exponent in reversed(START_GRID):
        solve(exponent)
    while (chosen := max(solved, key=lambda exponent: solved[exponent][0])) in (min(solved), max(solved)):
        step = chosen + (1 if chosen == max(solved) else -1)
        if not LIMITS[0] <= step <= LIMITS[1]:
            break
        solve(step)
    return Probe(scaling.to_head(solved[chosen][1]), 10.0**chosen, solved[chosen][0][0])


class Scaling(NamedTuple):
    """Mean and standard deviation of every feature, (D,) float64; where it hardly varies 1 for the latter."""

    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, D), standardised, float64 on the CPU."""
        return (features.double().cpu() - self.mean) / self.scale

    def to_head(self, solution: Tensor) -> Head:
        """The head of a solution (classes, D+1) for standardised features."""
        weight = solution[:, :-1] / self.scale
        return Head(weight.float(), (solution[:, -1] - weight @ self.mean).float())

    def from_head(self, head: Head) -> Tensor:
        """The inverse of `to_head`."""
        weight, bias = (part.double().cpu() for part in head)
        return torch.cat([weight * self.scale, (bias + weight @ self.mean)[:, None]], 1)


def standardised(features: Tensor) -> tuple[Tensor, Scaling]:
    """Features (N, D) with mean 0 and deviation 1, and what made them so."""
    features = features.double().cpu()
    std = features.std(0, correction=0)
    scale = torch.where(std > 1e-8 * std.max().clamp_min(1e-30), std, torch.ones_like(std))
    scaling = Scaling(features.mean(0), scale)
    return scaling(features), scaling


def solve_head(
    features: Tensor, labels: Tensor, penalty: float, start: Head, class_weights: Tensor | None = None
) -> Head:
    """The head that the probe of features (N, D) would be with a penalty that is known; `start` is a head near it."""
    scaled, scaling = standardised(features)
    weights = None if class_weights is None else class_weights.double().cpu()
    return scaling.to_head(logistic_regression(scaled, labels.cpu(), penalty, scaling.from_head(start), weights))


def halfway(one: Head, other: Head) -> Head:
    """The mean of two heads."""
    return Head((one.weight + other.weight) / 2, (one.bias + other.bias) / 2)


def logistic_regression(
    features: Tensor, labels: Tensor, penalty: float, start: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Minimise mean cross-entropy + penalty/2 * |W|^2; the bias is free.

    Args:
        features: (N, D) float64.
        labels: (N,).
        penalty: Of the weights.
        start: (classes, D+1): weights and, in the last column, biases.
        class_weights: (classes,) float64 or None.

    Returns:
        (classes, D+1), gradient norm below 1e-6 or 1000 iterations.
    """
    solution = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=1000,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, solution[:, :-1], solution[:, -1])
        loss = F.cross_entropy(logits, labels, class_weights) + 0.5 * penalty * solution[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)  # the closure returns a tensor, as LBFGS wants
    return solution.detach()
