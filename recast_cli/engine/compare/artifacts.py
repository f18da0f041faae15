"""What the runs of a comparison share and make once: bases, linear probes, decoded images."""

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from recast_cli.engine.adapt.fit import probe_network
from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.base.base import Base
from recast_cli.engine.base.file import load_base
from recast_cli.engine.compare.spec import MIMIC, Method, Plan, TaskSpec, digest_of, probe_options
from recast_cli.engine.compare.sweep import Run
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.decode import Images, decode
from recast_cli.engine.images.splits import split_folder
from recast_cli.engine.mimic.make_base import make_base
from recast_cli.engine.mimic.options import MimicOptions
from recast_cli.engine.model.attach import attach
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.source.open import open_source
from recast_cli.engine.storage.header import FORMATS, read_metadata
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.storage.writer import write_tensors
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions


@dataclass(frozen=True)
class Work:
    """A run with what it needs: where files go, the device, and the size of the cache of images."""

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
    def task(self) -> TaskSpec:
        """Of the run."""
        return self.plan.tasks[self.run.task]

    @property
    def options(self) -> AdaptOptions:
        """Of the run, as `adapt` would be given them."""
        recast = self.method.kind == "recast"
        options = replace(self.task.options, choose=0, seed=self.run.seed, coefficients=recast)
        if "adapter" in self.method.adapter:  # its rate is the one that is swept; coefficients have their default
            return replace(options, **self.method.adapter, adapter_lr=self.run.lr)
        return replace(options, **self.method.adapter, lr=self.run.lr or options.lr)

    def file(self, part: str = "") -> Path:
        """Where what was trained is kept until it is measured; the `part` .head and .adapter lie beside it."""
        return self.folder / "trained" / f"{self.run.key}{part}.safetensors"


class CannotRun(RecastError):
    """The method cannot be applied here: that is a result, unlike what is wrong with files or the machine."""


@contextlib.contextmanager
def applying() -> Iterator[None]:
    """Errors within are the method's own."""
    try:
        yield
    except RecastError as error:
        raise CannotRun(error.what, error.hint) from None


def alone(path: Path) -> AbstractContextManager[object]:
    """One process at a time makes the file at `path`; the others wait, and find it."""
    return FileLock(path.with_name(f".{path.stem}.lock"))


def base_of(work: Work) -> Base:
    """The base that a run works on, from `bases/`, where it is made if it is not there."""
    path = base_file(work.plan, work.run.source, work.run.method, work.folder)
    with alone(path):
        mimic_source(work.plan, work.run, path)
    return load_base(path)


def make_bases(plan: Plan, runs: Sequence[Run], folder: Path) -> None:
    """Make the bases that runs want: what is wrong with a source is then said once, and before anything is trained.

    Raises:
        RecastError: A source cannot be opened.
    """
    for path, run in {base_file(plan, run.source, run.method, folder): run for run in runs}.items():
        try:
            mimic_source(plan, run, path)
        except CannotRun:
            continue  # the runs say so themselves
        except RecastError as error:
            raise RecastError(f"{plan.path}: sources.{run.source}: {error.what}", error.hint) from None


def base_file(plan: Plan, source: str, method: str, folder: Path) -> Path:
    """Where the base of runs of a method lies."""
    return folder / "bases" / f"{digest_of(plan.base_spec(source, method), *plan.pick(source, method))}.safetensors"


def mimic_source(plan: Plan, run: Run, path: Path) -> None:
    """Mimic the source of a run as the plan says, unless that was done."""
    if path.exists():
        return
    spec = plan.base_spec(run.source, run.method)
    name = spec["source"]
    beside = plan.place(name.removeprefix("local-dir:"))
    weights = plan.place(spec["weights"]) if "weights" in spec else None
    source = open_source(str(beside) if beside.exists() else name, spec.get("architecture"), weights)
    with applying():
        given = {key: value for key, value in spec.items() if key in MIMIC}
        make_base(source, MimicOptions(**given | {"modules": tuple(spec.get("modules", ()))}), file=path)


def probe_of(work: Work, base: Base) -> tuple[Probe, dict[str, Any]]:
    """The linear probe on a run's base and task, and how it was made; from `probes/`, made where it is not there.

    It is the probe of `adapt`, on the base as `adapt` attaches it.
    """
    spec = (work.plan.base_spec(work.run.source, work.run.method), work.task.data, probe_options(work.task.options))
    path = work.folder / "probes" / f"{digest_of(*spec)}.safetensors"
    with alone(path):
        if not path.exists():
            make_probe(work, base, path)
    tensors, made = read_tensors(path), read_metadata(path)
    assert made is not None
    return Probe(Head(**tensors), made["penalty"], made["val_top1"]), made


def make_probe(work: Work, base: Base, path: Path) -> None:
    """Fit the linear probe of a run's base and task."""
    options, device = work.task.options, work.device
    data = data_of(work, base, options)
    reset_peak(device)
    start = time.perf_counter()
    with applying():  # a network may not take images of this size
        model = ready(attach(base, image_size=options.image_size), device)
    probe = probe_network(model, data)
    metadata = {
        "kind": "probe",
        "format": FORMATS["probe"],
        "base_id": base.base_id,
        "task": work.run.task,
        "penalty": probe.penalty,
        "val_top1": probe.val_top1,
        "seconds": round(time.perf_counter() - start, 2),
        "peak_memory_mb": peak_mb(device),
    }
    write_tensors(path, probe.head._asdict(), metadata)


def data_of(work: Work, base: Base, options: AdaptOptions) -> TrainingData:
    """What a run learns from by these options."""
    images = {part: task_images(work, base, part) for part in ("train", "val")}
    return TrainingData(images, len(_kept["split"].classes), base.known_architecture().preprocessing, options)


def task_images(work: Work, base: Base, part: str) -> Images:
    """The `train`, `val` or `test` images of a run as a base's network wants them; the last task's are kept."""
    options, folder = work.task.options, work.plan.place(work.task.data)
    preprocessing = base.known_architecture().preprocessing.at(options.image_size)
    key = digest_of(str(folder.resolve()), probe_options(options), vars(preprocessing))
    if _kept.get("key") != key:
        _kept.clear()
        _kept["key"] = key
        _kept["split"] = split_folder(folder, options.split_seed, options.split == "pooled")
    if part not in _kept:
        items = getattr(_kept["split"], part)
        _kept[part] = decode(folder, items, preprocessing, options.on_bad_image, cache_size=work.cache_size)
    return _kept[part]


_kept: dict[str, Any] = {}
"""Images of the task at hand: runs of one task stand beside one another, and other tasks want the memory."""


def forget_images() -> None:
    """Give back the memory of the last task's images."""
    _kept.clear()


def reset_peak(device: torch.device) -> None:
    """Begin to watch the memory that this process takes at most."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float | None:
    """Megabytes at most since `reset_peak`: allocated on a CUDA device, else resident; None where nobody knows."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/status").read_text().splitlines():
            if entry.startswith("VmHWM:"):
                return round(int(entry.split()[1]) * 1024 / 1e6, 1)
    return None
