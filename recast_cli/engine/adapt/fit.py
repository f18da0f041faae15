"""The whole road of learning: linear probe, training, and the head refitted.

`adapt` takes it with the coefficients of a base, `compare` with whatever a method trains.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recast_cli.engine.adapt.choose import choose_places
from recast_cli.engine.adapt.cross_fit import FOLDS, Judges, fit_judges, split_folds
from recast_cli.engine.adapt.learner import Learner
from recast_cli.engine.adapt.linear_probe import Probe, fit_probe, halfway
from recast_cli.engine.adapt.loop import TrainingData, train
from recast_cli.engine.adapt.state import CHOSEN, Epoch, State, Trained, as_good, put
from recast_cli.engine.measure.metrics import top_k
from recast_cli.engine.model.adapters.adapter import Adapter
from recast_cli.engine.progress import Progress
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.inference import infer, take_features
from recast_cli.engine.runtime.precision import training_precision
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import RECIPES

Rows = tuple[Tensor, Tensor]
"""Features (N, width) of images, and their labels (N,)."""


class Learned(NamedTuple):
    """What `learn_task` comes to.

    Attributes:
        vector: Coefficients in layout order, or what a method trains in their place, one value after another.
        places: (k, 2) int32, where the coefficients were chosen, else None.
        head: The final one.
        coefficients: How many numbers of `vector` were trained: all or none.
        adapter_floats: How many of the adapter.
        precision: Of products while training.
        timings: Seconds of `probe`, where it was to be fitted, and of `train`.
    """

    vector: Tensor
    adapter: Adapter | None
    places: Tensor | None
    head: Head
    state: State
    coefficients: int
    adapter_floats: int
    precision: torch.dtype
    timings: dict[str, float]


def learn_task(
    learner: Learner,
    training_data: TrainingData,
    *,
    probe: Probe | None = None,
    state: State | None = None,
    compiled: bool = False,
    save: Callable[[State], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Train from the linear probe, then refit the head where the recipe starts from the probe.

    Where the probe is known, or the `state` of a run to be continued, that is where it starts. The learner is trained
    in place, and lets go of its base: a sparse adapter has then looked at the source's weights, and nobody wants the
    memory of two networks. The rest is as of `train`, but `on_epoch` is called with the epochs before as well: epoch 0
    is the start.

    Raises:
        RecastError: The loss is no longer finite.
    """
    model, options = learner.model, training_data.options
    timings: dict[str, float] = {}
    if state is None:
        with timed(timings, "probe"):
            state = begin(learner, training_data, probe, progress)
    else:  # what the run that is continued has chosen
        fixed = dict(state.fixed)
        if learner.entries:
            learner.entries.choose(*(fixed.pop(name) for name in CHOSEN))
        if options.judged:  # the values of their heads are the state's
            heads = Head(*(part.expand(FOLDS, *part.shape) for part in state.probe.head))
            folds = split_folds(training_data.images["train"].labels, options.seed)
            learner.judges = Judges(heads, folds).trainable(learner.device)
        if learner.adapter:
            learner.adapter.fix(fixed)
    learner.base = None
    start = [parameter.detach().cpu().clone() for parameter in learner.parameters]
    if on_epoch:
        for epoch in state.history:
            on_epoch(epoch)
    with timed(timings, "train"):
        state = train(learner, state, training_data, compiled=compiled, save=save, on_epoch=on_epoch, progress=progress)
        if RECIPES[options.recipe].head == "probe":
            put(learner.parameters, state.best.values)
            state = refit_head(state, *extract_features(model, training_data, progress), training_data.class_weights)
            if not as_good(state.val_top1 or 0.0, state.probe.val_top1, len(training_data.images["val"])):
                best = Trained(start, state.probe.head)  # the final head showed that the probe was better
                state = replace(state, best=best, best_epoch=0, final_val_top1=state.probe.val_top1)
    vector, adapter = learner.learned(state.best.values)
    return Learned(
        vector,
        adapter,
        learner.entries.places if learner.entries else None,
        state.best.head,
        state,
        vector.numel() if learner.coefficients else 0,
        learner.adapter.floats if learner.adapter else 0,
        training_precision(model, learner.device, options.precision),
        timings,
    )


def begin(
    learner: Learner, training_data: TrainingData, probe: Probe | None = None, progress: Progress | None = None
) -> State:
    """Epoch 0: the parameters as they are, the linear probe or random weights for a head, and what is chosen."""
    options, weights, train = training_data.options, training_data.class_weights, training_data.images["train"]
    if probe is None or options.judged:
        rows = features_of(learner.model, training_data, "train", progress)
    if probe is None:
        val_rows = features_of(learner.model, training_data, "val", progress)
        probe = probe_rows(rows, val_rows, training_data.classes, weights)
    head = probe.head
    accuracy: float | None = probe.val_top1
    fixed = learner.choose(head, train, options)
    if options.judged:
        judges = distributed.from_first(lambda: fit_judges(*rows, probe, options.seed, weights))
        learner.judges = judges.trainable(learner.device)
    if learner.entries:
        assert learner.judges
        chosen = choose_places(learner.entries, training_data, learner.judges)
        fixed |= dict(zip(CHOSEN, chosen, strict=True))
        learner.entries.choose(*chosen)
    if RECIPES[options.recipe].head == "random":  # as torch starts a linear layer
        bound, generator = head.weight.shape[1] ** -0.5, torch.Generator().manual_seed(options.seed)
        head = Head(*(torch.empty_like(part).uniform_(-bound, bound, generator=generator) for part in head))
        accuracy = None
    start = Trained(learner.parameters, head).copy()
    return State(start, start, probe, history=[Epoch(0, None, accuracy)], fixed=fixed)


def probe_network(model: nn.Module, training_data: TrainingData, progress: Progress | None = None) -> Probe:
    """The linear probe on what a network makes of images as they are, the same in all processes."""
    rows = extract_features(model, training_data, progress)
    return probe_rows(*rows, training_data.classes, training_data.class_weights)


def extract_features(
    model: nn.Module, training_data: TrainingData, progress: Progress | None = None
) -> tuple[Rows, Rows]:
    """What a network makes of the training and of the validation images, as `features_of` has it."""
    return features_of(model, training_data, "train", progress), features_of(model, training_data, "val", progress)


def features_of(model: nn.Module, training_data: TrainingData, part: str, progress: Progress | None = None) -> Rows:
    """What a network makes of the `train` or `val` images, as they are.

    In the precision of measuring, as a head that is fitted to them will be measured: a CPU measures in float32, and
    there a head that was fitted to bfloat16 features can be a point worse.
    """
    images, device = training_data.images[part], next(model.parameters()).device
    take = take_features(model)
    found = infer(take, images.pixels, training_data.preprocessing, device, progress=progress, text="probing")
    return found, images.labels


def probe_rows(train: Rows, val: Rows, classes: int, class_weights: Tensor | None) -> Probe:
    """The linear probe, `fit_probe`, the same in all processes."""
    return distributed.from_first(lambda: fit_probe(train, val, classes, class_weights))


def refit_head(state: State, train: Rows, val: Rows, class_weights: Tensor | None) -> State:
    """The head of the chosen epoch, half trained and half solved: the mean of both.

    The trained one lags behind features that moved under it, the solved one, a linear probe, knows the training images
    as they are and not flipped and cropped. They err differently: their mean is no worse than the better one, and where
    both are as good better than either (docs/evidence/head-and-epochs.md).

    `train` and `val` are what the network makes of those images with the parameters of `state.best`.
    """
    values, trained = state.best
    head = halfway(trained, probe_rows(train, val, len(trained.bias), class_weights).head)
    return replace(state, best=Trained(values, head), final_val_top1=top_k(head(val[0]), val[1]))


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to `timings[name]`."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start
