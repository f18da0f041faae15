"""Images + base -> task: decode, probe, train, measure once, write."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine import resume
from recast_cli.engine.attach import attach, coefficient_parameters, merge
from recast_cli.engine.base import Base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.files import FORMAT_VERSION
from recast_cli.engine.images import Images, decode
from recast_cli.engine.metrics import top_k
from recast_cli.engine.probe import Probe, fit_probe
from recast_cli.engine.run import Progress, choose_device, infer, take_features
from recast_cli.engine.splits import Split, split_folder
from recast_cli.engine.task import RECORD, Task, check_task_name, load_task, read_record, save_task
from recast_cli.engine.train import Epoch, Recipe, State, train


@dataclass(frozen=True)
class AdaptOptions(Recipe):
    """The recipe, and how images become training data. All of it is recorded in task.yaml.

    Attributes:
        image_size: Height and width in pixels; None: the network's own.
        split: `auto` keeps the folder's own parts; `pooled` cuts all images together.
        split_seed: Of the split; the training seed never changes it.
        class_weights: `none`, or `balanced` by inverse frequency in train.
        on_bad_image: `skip` or `fail`.
    """

    image_size: int | None = None
    split: str = "auto"
    split_seed: int = 0
    class_weights: str = "none"
    on_bad_image: str = "skip"


def adapt(
    base: Base,
    data: Path,
    name: str,
    folder: Path,
    options: AdaptOptions | None = None,
    *,
    device: str | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Task:
    """Learn a task: its coefficients and its head; nothing of the base changes.

    A run that was killed goes on after its last whole epoch. A finished task with equal options is returned as it is.

    Args:
        base: From `load_base` or `mimic`; its architecture must be known.
        data: Image folder.
        name: Of the task.
        folder: Where the task's files go, e.g. `tasks/flowers`.
        options: Recipe and data options.
        device: cpu, cuda, …; default: CUDA where it is.
        restart: Forget what `folder` holds of this task.
        progress: Called with images done and images in all.
        on_epoch: Called after every epoch, first with epoch 0, the linear probe.

    Raises:
        RecastError: Wrong data, options, base or folder.
    """
    options = options or AdaptOptions()
    check_options(options)
    check_task_name(name)
    where = choose_device(device)
    identity = {"base_id": base.base_id, "data": recorded_path(data, folder), "options": asdict(options)}
    if restart:
        (folder / RECORD).unlink(missing_ok=True)
        resume.forget(folder)
    elif (folder / RECORD).exists():
        check_same(read_record(folder), identity, folder)
        return load_task(folder, base)
    architecture = base.known_architecture()
    started, clock = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    split = split_folder(data, options.split_seed, options.split == "pooled")
    identity["split"] = describe_split(split, options)
    state = resume.load(folder, identity)
    model = attach(base, image_size=options.image_size).to(where)
    resume.prepare(folder)

    def read(part: str, share: Progress | None = progress) -> Images:
        return decode(data, getattr(split, part), architecture.data, options.image_size, options.on_bad_image, share)

    images = {"train": read("train"), "val": read("val")}
    weights = balance(images["train"].labels, len(split.classes)) if options.class_weights == "balanced" else None
    if state is None:
        taken = {
            part: (
                infer(take_features(model), images[part].pixels, architecture.data, where, 64, progress, text),
                labels,
            )
            for part, labels, text in (
                ("train", images["train"].labels, "features of train"),
                ("val", images["val"].labels, "features of val"),
            )
        }
        probe = fit_probe(taken["train"], taken["val"], len(split.classes), weights)
        state = start_state(base, probe)
    if on_epoch:
        for epoch in state.history:
            on_epoch(epoch)

    def after_epoch(now: State) -> None:
        resume.save(folder, identity, now)
        if on_epoch:
            on_epoch(now.history[-1])

    state = train(
        model,
        coefficient_parameters(model, base),
        state,
        images["train"],
        images["val"],
        architecture.data,
        options,
        weights,
        after_epoch,
        progress,
    )
    images["test"] = read("test")
    vector = torch.cat([tensor.reshape(-1) for tensor in state.best[:-2]])
    weight, bias = state.best[-2:]
    probe_weight, probe_bias = state.probe
    tested = measure(base, vector, weight, bias, images["test"], options.image_size, where)
    probed = measure(base, base.vector, probe_weight, probe_bias, images["test"], options.image_size, where)
    trained = [epoch for epoch in state.history if epoch.images_per_second]
    record = {
        "format": FORMAT_VERSION,
        "name": name,
        **{key: identity[key] for key in ("base_id", "data")},
        "base_source": base.source,
        "architecture": architecture.name,
        "image_size": options.image_size or architecture.image_size,
        "coefficients": len(vector),
        "head_parameters": weight.numel() + bias.numel(),
        "metrics": {
            "val_top1": state.history[state.best_epoch].val_top1,
            "test_top1": tested,
            "linear_probe_val_top1": state.history[0].val_top1,
            "linear_probe_test_top1": probed,
            "best_epoch": state.best_epoch,
            "linear_probe_penalty": state.penalty,
        },
        "options": identity["options"],
        "skipped_images": [path for part in images.values() for path in part.skipped],
        "history": [asdict(epoch) for epoch in state.history],
        "device": str(where),
        "images_per_second": sum(e.images_per_second or 0 for e in trained) / len(trained) if trained else None,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 2),
        "versions": versions(),
        "classes": list(split.classes),
        "split": identity["split"],
    }
    task = Task(name, base.base_id, vector, weight, bias, record)
    save_task(task, folder)
    resume.forget(folder)
    return task


def check_options(options: AdaptOptions) -> None:
    """Raise RecastError where a number is out of range or a word unknown."""
    for option, value in (
        ("--epochs", options.epochs),
        ("--lr", options.lr),
        ("--head-lr", options.head_lr),
        ("--batch-size", options.batch_size),
        ("--image-size", options.image_size),
    ):
        if value is not None and not value > 0:
            raise RecastError(f"{option} {value} is not positive", "Give a number above 0.")
    for option, value, known in (
        ("--split", options.split, ("auto", "pooled")),
        ("--class-weights", options.class_weights, ("none", "balanced")),
        ("--on-bad-image", options.on_bad_image, ("skip", "fail")),
    ):
        if value not in known:
            raise RecastError(f"{option} {value} is unknown", f"Use {' or '.join(known)}.")


def start_state(base: Base, probe: Probe) -> State:
    """Epoch 0: the base's coefficients and the linear probe for a head."""
    trained = [base.coefficients(module).float() for module in base.layout.modules] + [probe.weight, probe.bias]
    history = [Epoch(0, None, probe.val_top1)]
    return State(trained, trained, (probe.weight, probe.bias), probe.penalty, history=history)


def measure(
    base: Base, vector: Tensor, weight: Tensor, bias: Tensor, images: Images, size: int | None, device: torch.device
) -> float:
    """Top-1 of the merged network with a head on `images`."""
    model = merge(base, vector, size).to(device)
    found = infer(take_features(model), images.pixels, base.known_architecture().data, device)
    return top_k(F.linear(found, weight, bias), images.labels)


def balance(labels: Tensor, classes: int) -> Tensor:
    """Weights (classes,) by inverse frequency, with mean 1 over the images; a class without images gets 0."""
    counts = torch.bincount(labels, minlength=classes).float()
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp_min(1)), torch.zeros(()))


def describe_split(split: Split, options: AdaptOptions) -> dict[str, Any]:
    """What task.yaml says of the split: its kind, sizes, and the validation and test images by name."""
    return {
        "kind": split.kind,
        "seed": options.split_seed,
        **{part: len(getattr(split, part)) for part in ("train", "val", "test")},
        "val_images": [item.path for item in split.val],
        "test_images": [item.path for item in split.test],
    }


def recorded_path(data: Path, folder: Path) -> str:
    """`data` relative to the folder that holds `tasks/` where it lies inside, so that both can move; else absolute."""
    home, data = folder.resolve().parent.parent, data.resolve()
    return data.relative_to(home).as_posix() if data.is_relative_to(home) else str(data)


def check_same(record: dict[str, Any], identity: dict[str, Any], folder: Path) -> None:
    """Raise RecastError unless a finished task was made from the same base and data with the same options."""
    wanted = {"base_id": identity["base_id"], "data": identity["data"], **identity["options"]}
    found = {"base_id": record["base_id"], "data": record.get("data"), **record["options"]}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise RecastError(
                f"{folder} is finished with {key} {found.get(key)}, now {key} is {value}",
                "Give the old options to see its result, --restart to replace it, or another --task.",
            )


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import timm

    from recast_cli import __version__

    return {
        "recast-cli": __version__,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
