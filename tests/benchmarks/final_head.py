"""Which epoch and which head a run should end with, judged by images that did not choose.

    python tests/benchmarks/final_head.py base.safetensors flowers17 birds50 cifar10-small --lr 0.05

Tasks are cut as in layouts.py, and no test image is opened. Every epoch's logits on all of the other half are kept, of
the head that was trained, of the one that is solved for the network as it is then, and of their mean. Then `--choosers`
of these images, drawn 300 times, choose an epoch by a rule, and the rest judge it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import arguments, report
from layouts import Task, fit, open_task
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.adapt.fit import extract_features
from recast_cli.engine.adapt.learner import make_learner
from recast_cli.engine.adapt.linear_probe import halfway, solve_head
from recast_cli.engine.adapt.state import State
from recast_cli.engine.base.base import Base
from recast_cli.engine.base.file import load_base
from recast_cli.engine.runtime.device import choose_device
from recast_cli.engine.task.options import AdaptOptions

DRAWS = 300


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("base", type=Path, help="from `recast mimic`")
    parser.add_argument("data", type=Path, nargs="+", metavar="DIR", help="image folders")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.05, help="of the coefficients (default: %(default)s)")
    parser.add_argument("--head-lr", type=float, default=0.001, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="their mean counts")
    parser.add_argument("--choosers", type=int, default=150, help="images that choose (default: %(default)s)")
    parser.set_defaults(draw=None)
    options = parser.parse_args()
    base = load_base(options.base)
    found: dict[tuple[str, str], dict[str, float]] = {}
    for data in options.data:
        task = open_task(base, data, 0, options)
        for seed in options.seeds:
            for key, value in judge(logits_of(base, task, seed, options), task, options.choosers).items():
                sums = found.setdefault(key, dict.fromkeys((each.name for each in options.data), 0.0))
                sums[task.name] += 100 * value / len(options.seeds)
    rows = [
        {"head": head, "epoch": rule, **tasks, "mean": sum(tasks.values()) / len(tasks)}
        for (head, rule), tasks in found.items()
    ]
    report("final_head", rows, options.json, base=base.source, lr=options.lr, epochs=options.epochs)


def logits_of(base: Base, task: Task, seed: int, options: Any) -> dict[str, list[Tensor]]:
    """Head -> its logits (images, classes) at the start, where it is the linear probe, and after every epoch."""
    learner = make_learner(base, AdaptOptions(image_size=options.image_size), choose_device())
    _, (start, _) = extract_features(learner.model, task.data)
    probe = task.probe.head(start)
    found = {"trained": [probe], "solved": [probe], "mean of both": [probe]}

    def note(state: State) -> None:
        trained = state.trained.head
        (features, labels), (seen, _) = extract_features(learner.model, task.data)
        solved = solve_head(features, labels, state.probe.penalty, trained)
        for name, head in zip(found, (trained, solved, halfway(trained, solved)), strict=True):
            found[name].append(head(seen))

    fit(learner, task, options.lr, seed, options, note)
    return found


def latest_within_an_error(scores: Tensor, losses: Tensor, count: int) -> int:
    """What `advance` of the engine does."""
    highest = float(scores.max())
    return int((scores >= highest - math.sqrt(highest * (1 - highest) / count)).nonzero()[-1])


def not_below_the_probe(scores: Tensor, losses: Tensor, count: int) -> int:
    """The same of the epochs that are not below the linear probe."""
    highest = float(scores.max())
    least = max(highest - math.sqrt(highest * (1 - highest) / count), float(scores[0]))
    return int((scores >= least).nonzero()[-1])


RULES: dict[str, Callable[[Tensor, Tensor, int], int]] = {
    "earliest of the best": lambda scores, losses, count: int(scores.argmax()),
    "least loss": lambda scores, losses, count: int(losses.argmin()),
    "latest within a standard error": latest_within_an_error,
    "the same, not below the probe": not_below_the_probe,
    "last": lambda scores, losses, count: len(scores) - 1,
}
"""From accuracies and losses of every epoch on so many images to the epoch that is taken."""


def judge(logits: dict[str, list[Tensor]], task: Task, choosers: int) -> dict[tuple[str, str], float]:
    """(Head, rule) -> the mean accuracy on images that did not choose; and the linear probe's."""
    labels = task.data.images["val"].labels
    right = {name: torch.stack([(e.argmax(1) == labels).float() for e in each]) for name, each in logits.items()}
    loss = partial(F.cross_entropy, target=labels, reduction="none")
    losses = {name: torch.stack([loss(epoch) for epoch in each]) for name, each in logits.items()}
    generator, found = torch.Generator().manual_seed(0), {("linear probe", "0"): float(right["trained"][0].mean())}
    for _ in range(DRAWS):
        order = torch.randperm(len(labels), generator=generator)
        some, rest = order[:choosers], order[choosers:]
        for name in logits:
            for rule, choose in RULES.items():
                epoch = choose(right[name][:, some].mean(1), losses[name][:, some].mean(1), choosers)
                key = name, rule
                found[key] = found.get(key, 0.0) + float(right[name][epoch, rest].mean()) / DRAWS
    return found


if __name__ == "__main__":
    main()
