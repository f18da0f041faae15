"""One run of a comparison: base, linear probe, training, and where its rate is chosen its accuracy on test.

Every method starts from the same linear probe, sees the same pictures in the same order, and is trained by the loop of
`adapt`; a run of RECAST gives the very numbers that `adapt` gives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from recast_cli.engine.adapt import measure, now, versions
from recast_cli.engine.base import Base
from recast_cli.engine.comparison import OWN_KINDS, Method, Plan, Task
from recast_cli.engine.contender import prepare, put
from recast_cli.engine.errors import RecastError
from recast_cli.engine.files import FORMAT_VERSION, read_tensors, write_tensors
from recast_cli.engine.learn import class_weights, learn, probe_model, start_state
from recast_cli.engine.metrics import top_k
from recast_cli.engine.options import AdaptOptions
from recast_cli.engine.run import choose_device, infer, take_features, training_precision
from recast_cli.engine.stock import (
    CannotRun,
    base_of,
    peak_mb,
    pictures,
    probe_of,
    reset_peak,
)
from recast_cli.engine.sweep import Run
from recast_cli.engine.switch import Switcher
from recast_cli.engine.train import State

Line = dict[str, Any]
"""What runs.jsonl says of a run."""


@dataclass(frozen=True)
class Work:
    """A run with what it needs: where files go, the device, and the size of the cache of pictures."""

    plan: Plan
    run: Run
    folder: Path
    device: torch.device
    cache_size: int | None

    @property
    def method(self) -> Method:
        """Of the run."""
        return self.plan.methods[self.run.method]

    @property
    def task(self) -> Task:
        """Of the run."""
        return self.plan.tasks[self.run.task]

    @property
    def options(self) -> AdaptOptions:
        """Of the run, as `adapt` would be given them."""
        options = self.task.options
        return replace(options, seed=self.run.seed, lr=self.run.lr or options.lr)

    @property
    def values_file(self) -> Path:
        """Where what was trained is kept until it is measured or no longer needed."""
        return self.folder / "trained" / f"{self.run.key}.safetensors"

    @property
    def head_file(self) -> Path:
        """The head beside it."""
        return self.folder / "trained" / f"{self.run.key}.head.safetensors"


def do_run(
    plan: Plan,
    run: Run,
    folder: Path,
    line: Line | None = None,
    device: str | None = None,
    cache_size: int | None = None,
) -> Line:
    """Do a run and return its line.

    Args:
        plan: Where the run is from.
        run: From `next_runs`.
        folder: The output folder, with `bases`, `probes` and `trained`.
        line: Of its training, where only its test images are left to be measured.
        device: As `choose_device` takes it.
        cache_size: As `decode` takes it.

    Raises:
        RecastError: Files or images are missing or damaged.
    """
    work = Work(plan, run, folder, choose_device(device), cache_size)
    known = {
        "key": run.key,
        "source": run.source,
        "task": run.task,
        "method": run.method,
        "kind": work.method.kind,
        "options": work.method.options,
        "seed": run.seed,
        "lr": run.lr,
        "device": str(work.device),
        "versions": versions(),
    }
    try:
        if work.method.kind == "linear-probe":
            found = probe_line(work)
        elif line is not None and work.values_file.exists() and work.head_file.exists():
            return line | {"test_top1": test_stored(work), "finished": now()}
        else:  # also where only the lines were kept: what was trained is trained again
            found = train_line(work)
            if run.test and "error" not in found:
                found["test_top1"] = test_stored(work)
    except CannotRun as error:
        found = {"error": str(error), "val_top1": None, "test_top1": None}
    return {**known, **found, "finished": now()}


def probe_line(work: Work) -> Line:
    """The line of the linear probe, which needs no training: what `adapt` reports of it."""
    base = base_of(work.plan, work.run, work.folder)
    probe, made = probe_of(work.plan, work.run, work.folder, base, work.device, work.cache_size)
    images = pictures(work.plan, work.run.task, base, "test", work.cache_size)
    size, head = work.options.image_size, (probe.weight, probe.bias)
    return {
        **shared(work, base),
        "floats": 0,
        "degrees_of_freedom": 0,
        "file_bytes": 0,
        "head_floats": probe.weight.numel() + probe.bias.numel(),
        "head_lr": None,
        "epochs": 0,
        "best_epoch": 0,
        "penalty": probe.penalty,
        "val_top1": probe.val_top1,
        "test_top1": measure(Switcher(base, str(work.device)), base.vector, head, images, size),
        "seconds": made["seconds"],
        "peak_memory_mb": made["peak_memory_mb"],
        "images_per_second": None,
        "precision": "float32",
    }


def shared(work: Work, base: Base) -> Line:
    """What the lines of all methods have."""
    return {"base_id": base.base_id, "image_size": work.options.image_size or base.known_architecture().image_size}


def train_line(work: Work) -> Line:
    """Train, and keep what was trained."""
    plan, run, options, device = work.plan, work.run, work.options, work.device
    base = base_of(plan, run, work.folder)
    data = base.known_architecture().data
    probe, _ = probe_of(plan, run, work.folder, base, device, work.cache_size)
    images = {part: pictures(plan, run.task, base, part, work.cache_size) for part in ("train", "val")}
    reset_peak(device)
    start = time.perf_counter()
    model, parameters = prepare(work.method, base, run.seed, options.image_size, device)
    state = start_state(parameters, probe, options)
    weights = class_weights(images["train"].labels, len(probe.bias), options)
    precision = training_precision(model, device, options.precision)
    about, degrees, base_id = shared(work, base), base.layout.degrees_of_freedom, base.base_id
    del base  # the network has what it needs: no method is charged for a second one
    solve = partial(probe_model, model, images, len(probe.bias), weights, data, device, None)
    try:
        state = learn(model, parameters, state, images, data, options, weights, solve)
    except RecastError as error:  # the loss is no longer finite: another rate may do
        return {"error": str(error), "diverged": True, "val_top1": None, "test_top1": None}
    seconds, peak = time.perf_counter() - start, peak_mb(device)
    floats = sum(parameter.numel() for parameter in parameters)
    rates = [epoch.images_per_second for epoch in state.history if epoch.images_per_second]
    save_trained(work, base_id, state)
    return {
        **about,
        "floats": floats,
        "degrees_of_freedom": degrees if work.method.kind == "recast" else floats,
        "file_bytes": work.values_file.stat().st_size if floats else 0,
        "head_floats": sum(part.numel() for part in state.best[-2:]),
        "head_lr": options.head_lr,
        "epochs": len(state.history) - 1,
        "best_epoch": state.best_epoch,
        "val_top1": state.val_top1,
        "test_top1": None,
        "seconds": round(seconds, 2),
        "peak_memory_mb": peak,
        "images_per_second": round(sum(rates) / len(rates), 1) if rates else None,
        "precision": str(precision).removeprefix("torch."),
    }


def save_trained(work: Work, base_id: str, state: State) -> None:
    """Write what was trained as one tensor, as `adapt` does, and the head beside it."""
    about = {"format": FORMAT_VERSION, "base_id": base_id}
    vector = torch.cat([torch.zeros(0), *(tensor.reshape(-1) for tensor in state.best[:-2])])
    extra = {} if work.method.kind in OWN_KINDS else {"method": work.method.kind, "options": work.method.options}
    write_tensors(work.values_file, {"coefficients": vector}, {"kind": "coefficients", **about, **extra})
    weight, bias = state.best[-2:]
    write_tensors(work.head_file, {"weight": weight, "bias": bias}, {"kind": "head", **about})


def test_stored(work: Work) -> float:
    """Top-1 on the test images of what was trained. RECAST is measured as `adapt` does it: merged."""
    base = base_of(work.plan, work.run, work.folder)
    vector, head = read_tensors(work.values_file)["coefficients"], read_tensors(work.head_file)
    classifier = (head["weight"], head["bias"])
    images = pictures(work.plan, work.run.task, base, "test", work.cache_size)
    if work.method.kind in OWN_KINDS:
        coefficients = vector if work.method.kind == "recast" else base.vector
        return measure(Switcher(base, str(work.device)), coefficients, classifier, images, work.options.image_size)
    model, parameters = prepare(work.method, base, work.run.seed, work.options.image_size, work.device)
    put(parameters, vector)
    found = infer(take_features(model), images.pixels, base.known_architecture().data, work.device)
    return top_k(F.linear(found, *classifier), images.labels)
