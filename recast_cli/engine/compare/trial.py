"""One run of a comparison: base, linear probe, training, and where its rate is chosen its accuracy on test.

Every method starts from the same linear probe, sees the same images in the same order, and is trained by the loop of
`adapt`; a run of RECAST gives the very numbers that `adapt` gives.
"""

import time
from pathlib import Path
from typing import Any

from recast_cli.engine.adapt.fit import Learned, learn_task
from recast_cli.engine.adapt.record import now, type_name, versions
from recast_cli.engine.adapt.state import put
from recast_cli.engine.base.base import Base
from recast_cli.engine.compare.artifacts import (
    CannotRun,
    Work,
    base_of,
    data_of,
    peak_mb,
    probe_of,
    reset_peak,
    task_images,
)
from recast_cli.engine.compare.candidate import prepare
from recast_cli.engine.compare.spec import OWN_KINDS, Plan
from recast_cli.engine.compare.sweep import Run
from recast_cli.engine.errors import RecastError
from recast_cli.engine.measure.evaluate import measure
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.runtime.device import choose_device
from recast_cli.engine.runtime.precision import measuring_precision
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import settled
from recast_cli.engine.task.task import read_adapter, save_adapter, save_coefficients, save_head

Line = dict[str, Any]
"""What runs.jsonl says of a run."""


def do_run(
    plan: Plan,
    run: Run,
    folder: Path,
    line: Line | None = None,
    device: str | None = None,
    cache_size: int | None = None,
) -> Line:
    """Do a run and return its line, given that of its training where only its test images are left to be measured.

    Raises:
        RecastError: Files or images are missing or damaged.
    """
    work = Work(plan, run, folder, choose_device(device), cache_size)
    known = {
        **{name: value for name, value in vars(run).items() if name != "test"},
        "kind": work.method.kind,
        "options": {**work.method.options, **work.method.adapter},
        "device": str(work.device),
        "versions": versions(),
    }
    try:
        if work.method.kind == "linear-probe":
            found = probe_line(work)
        elif line is not None and work.file().exists() and work.file(".head").exists():
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
    base = base_of(work)
    probe, made = probe_of(work, base)
    images = task_images(work, base, "test")
    model = Switcher(base, str(work.device)).switch(base.vector, work.options.image_size)
    return {
        **shared(work, base),
        **dict.fromkeys(("floats", "places", "degrees_of_freedom", "file_bytes", "epochs", "best_epoch"), 0),
        **dict.fromkeys(("head_lr", "images_per_second")),
        "head_floats": probe.head.floats,
        "penalty": probe.penalty,
        "val_top1": probe.val_top1,
        "test_top1": measure(model, probe.head, images, base.known_architecture().preprocessing),
        "seconds": made["seconds"],
        "peak_memory_mb": made["peak_memory_mb"],
        "precision": type_name(measuring_precision(work.device)),
    }


def shared(work: Work, base: Base) -> Line:
    """What the lines of all methods have."""
    return {"base_id": base.base_id, "image_size": work.options.image_size or base.known_architecture().image_size}


def train_line(work: Work) -> Line:
    """Train, and keep what was trained."""
    base, device = base_of(work), work.device
    options = settled(work.options, base.layout, None)
    probe, _ = probe_of(work, base)
    data = data_of(work, base, options)
    reset_peak(device)
    start = time.perf_counter()
    learner = prepare(work.method, base, options, device)
    about, degrees, base_id = shared(work, base), base.layout.degrees_of_freedom, base.base_id
    del base  # nor does the learner keep it: no method is charged for a second network
    try:
        learned = learn_task(learner, data, probe=probe)
    except RecastError as error:  # the loss is no longer finite: another rate may do
        return {"error": str(error), "diverged": True, "val_top1": None, "test_top1": None}
    seconds, peak = time.perf_counter() - start, peak_mb(device)
    state, floats = learned.state, learned.coefficients + learned.adapter_floats
    places = 0 if learned.places is None else len(learned.places)
    of_layout = work.method.kind == "recast" and not places
    return {
        **about,
        "floats": floats + places,  # a place is a number that is stored, like any other
        "places": places,
        "degrees_of_freedom": degrees + learned.adapter_floats if of_layout else floats,
        "file_bytes": save_learned(work, base_id, learned),
        "head_floats": learned.head.floats,
        "head_lr": options.head_lr,
        "epochs": len(state.history) - 1,
        "best_epoch": state.best_epoch,
        "val_top1": state.val_top1,
        "test_top1": None,
        "seconds": round(seconds, 2),
        "peak_memory_mb": peak,
        "images_per_second": state.images_per_second,
        "precision": type_name(learned.precision),
    }


def save_learned(work: Work, base_id: str, learned: Learned) -> int:
    """Write what was learned, as `adapt` does; returns the bytes of what the method adds to a head."""
    kind = work.method.kind
    extra = {} if kind in OWN_KINDS else {"method": kind, "options": work.method.options}
    save_coefficients(work.file(), learned.vector, learned.places, base_id, extra)
    save_head(work.file(".head"), learned.head, base_id)
    size = 0 if kind in ("head", "adapter") else work.file().stat().st_size
    if learned.adapter is not None:
        save_adapter(work.file(".adapter"), learned.adapter, base_id)
        size += work.file(".adapter").stat().st_size
    return size


def test_stored(work: Work) -> float:
    """Top-1 on the test images of what was trained. RECAST is measured as `adapt` does it: merged."""
    base = base_of(work)
    stored, head = read_tensors(work.file()), Head(**read_tensors(work.file(".head")))
    vector, places = stored["coefficients"], stored.get("places")
    images = task_images(work, base, "test")
    options, device = work.options, work.device
    if work.method.kind in OWN_KINDS:
        adapter = read_adapter(work.file(".adapter")) if options.adapter else None
        model = Switcher(base, str(device)).switch(vector, options.image_size, adapter, places)
    else:
        learner = prepare(work.method, base, options, device)
        put(learner.parameters, vector.split([each.numel() for each in learner.parameters]))
        model = learner.model
    return measure(model, head, images, base.known_architecture().preprocessing)
