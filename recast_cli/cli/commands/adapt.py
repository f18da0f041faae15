"""`recast adapt`: image folder -> task."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recast_cli.cli.options import BaseFile, CacheSize, Debug, Device, Json, OnBadImage, Quiet
from recast_cli.cli.output import Output, left_out, show_facts
from recast_cli.cli.startup import prepare
from recast_cli.engine.errors import RecastError
from recast_cli.engine.task.folder import ADAPTER, files_of
from recast_cli.engine.task.options import ADAPTERS, CHOSEN_LR, CUT_KERNEL_LR, RECIPES, option_types
from recast_cli.engine.units import count_coefficients, percent
from recast_cli.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from recast_cli.engine.adapt.state import Epoch
    from recast_cli.engine.task.task import Task


def adapter_defaults(option: str) -> str:
    """What an option of adapters is where it is not given: the most usual value, and who has another."""
    found = {name: value for name, own in ADAPTERS.items() if (value := getattr(own, option)) is not None}
    usual = Counter(found.values()).most_common(1)[0][0]
    others = [f"{name}: {value:g}" for name, value in found.items() if value != usual]
    return "default: " + ", ".join([f"{usual:g}", *others])


def defaults(option: str) -> str:
    """What an option is where it is not given, for its help."""
    return f"default: {getattr(RECIPES['default'], option)}, paper: {getattr(RECIPES['paper'], option)}"


def adapt(
    task: Annotated[str, typer.Option("--task", "-t", metavar="NAME", help="Name of the task.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images.  [default: recast.yaml's, data/NAME, else a known set]"),
    ] = None,
    base: BaseFile = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels.  [default: the network's own]")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="default|paper", help="paper: the published 100 epochs from a random head."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help=f"Most passes over the images.  [{defaults('epochs')}]")] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help=f"Learning rate of the coefficients.  [{defaults('lr')}; of kernels cut in two: {CUT_KERNEL_LR}, "
            f"of chosen ones: {CHOSEN_LR}]"
        ),
    ] = None,
    head_lr: Annotated[float | None, typer.Option(help=f"Learning rate of the head.  [{defaults('head_lr')}]")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help=f"Images a step; auto: as many as fit.  [{defaults('batch_size')}]"),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help=f"Stop after so many epochs without a better val; 0: never.  [{defaults('patience')}]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, augmentation, random head.  [default: 0]")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="auto|pooled", help="pooled: cut all images together.  [default: auto]")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="Of the split.  [default: 0]")] = None,
    class_weights: Annotated[
        str | None, typer.Option(metavar="none|balanced", help="Weights of the loss.  [default: none]")
    ] = None,
    on_bad_image: OnBadImage = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="auto|float32|bfloat16", help="While training; auto: bfloat16 where that is faster."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Train an adapter beside the coefficients: {', '.join(ADAPTERS)}."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help=f"Of the adapter's update, or its width.  [{adapter_defaults('rank')}]")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help=f"Share of entries that rosa changes.  [{adapter_defaults('density')}]")
    ] = None,
    adapter_lr: Annotated[
        float | None, typer.Option(help=f"Learning rate of the adapter.  [{adapter_defaults('lr')}]")
    ] = None,
    coefficients: Annotated[
        bool | None,
        typer.Option("--coefficients/--no-coefficients", help="Without them: the adapter alone.", show_default=False),
    ] = None,
    choose: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Let the task choose what it moves: N numbers, places counted. 0: the layout's coefficients.  "
            "[default: as many as those are, in a transformer at its own image size; else 0]",
        ),
    ] = None,
    statistic: Annotated[
        str | None,
        typer.Option(metavar="damped|natural|size", help="What a chosen entry promises.  [default: damped]"),
    ] = None,
    dictionary: Annotated[
        str | None,
        typer.Option(
            metavar="all|entries|gains|biases",
            help="What moves: the layout's coefficients and chosen entries, or entries alone.  [default: all]",
        ),
    ] = None,
    cross_fit: Annotated[
        bool | None,
        typer.Option(
            "--cross-fit",
            help="Heads that do not know an image say what it changes.  [--choose: always]",
            show_default=False,
        ),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the network first: pays in long runs.")] = False,
    cache_size: CacheSize = None,
    restart: Annotated[bool, typer.Option("--restart", help="Replace what this task already has.")] = False,
    device: Device = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Teach a base a task from a folder of images.

    What is learned is a few dozen coefficients and a classification head. Images lie in <class>/<images>, or in
    train, val and test folders of such. Without a split they are cut 70/15/15. The epoch is chosen on validation;
    test is measured once, beside a linear probe.

    \b
        recast adapt --task flowers
        recast adapt --task flowers --data ~/images/flowers --image-size 112
        recast adapt --task cifar10 --json > result.json
        recast adapt --task flowers --adapter melo --rank 4
        torchrun --nproc-per-node 4 -m recast_cli adapt --task flowers
    """
    given = locals() | {"batch_size": int(batch_size) if batch_size and batch_size.isdecimal() else batch_size}
    out = Output(as_json, quiet)
    workspace = find_workspace()
    folder = workspace.task_folder(task)
    options = workspace.adapt_options(task, {name: given[name] for name in option_types()})
    base_file = workspace.base_file(base)
    prepare(device)
    from recast_cli.engine.adapt.adapt import adapt as learn
    from recast_cli.engine.base.file import load_base

    loaded = load_base(base_file)
    images = find_images(workspace, task, data, out)

    def on_epoch(epoch: Epoch) -> None:
        val = percent(epoch.val_top1)
        if epoch.number == 0:
            head = RECIPES[options.recipe].head
            out.note(f"epoch  0  {'random head' if head == 'random' else f'linear probe   val {val}'}")
        else:
            out.note(
                f"epoch {epoch.number:2d}  loss {epoch.loss:.4f}    val {val}   {epoch.images_per_second:.0f} images/s"
            )

    with out.progress() as progress:
        learned = learn(
            loaded,
            images,
            task,
            folder,
            options,
            device=device,
            compiled=compiled,
            cache_size=cache_size,
            restart=restart,
            progress=progress,
            on_epoch=on_epoch,
        )
    if skipped := learned.record["skipped_images"]:
        out.warn(left_out(skipped))
    value = summary(learned, folder)
    out.result(value, lambda console: show(console, value))


def find_images(workspace: Workspace, task: str, flag: Path | None, out: Output) -> Path:
    """The task's image folder; a set known by name is fetched into `data/<task>`."""
    found = workspace.known_data(task, flag)
    if found is not None:
        return found
    from recast_cli.engine.images.datasets import fetch_known, known_names

    target = workspace.root / "data" / task
    if task not in known_names():
        hint = f"Give --data DIR, or name a known set: {', '.join(known_names())}."
        raise RecastError(f"No images for task {task}: {target} does not exist", hint)
    out.note(f"fetching {task} into {target}")
    with out.progress() as progress:
        return fetch_known(task, target, progress)


def summary(task: Task, folder: Path) -> dict[str, Any]:
    """The JSON of `recast adapt`."""
    record = task.record
    metrics, adapter = record["metrics"], record.get("adapter")
    names = ("val_top1", "test_top1", "linear_probe_val_top1", "linear_probe_test_top1")
    return {
        "task": task.name,
        "base_id": task.base_id,
        "coefficients": record["coefficients"],
        "places": record.get("places", 0),
        "head_parameters": record["head_parameters"],
        "adapter": adapter and {**adapter, "bytes": (folder / ADAPTER).stat().st_size},
        "files": [str(folder / name) for name in files_of(record)],
        **{name: metrics[name] for name in names},
        "epochs": len(record["history"]) - 1,
        "best_epoch": metrics["best_epoch"],
        "images_per_second": record["images_per_second"],
        "seconds": record["seconds"],
        "timings": record["timings"],
        "device": record["device"],
        "precision": record["precision"],
        "skipped_images": len(record["skipped_images"]),
    }


def show(console: Console, value: dict[str, Any]) -> None:
    """The same for people."""
    unmoved = "" if value["best_epoch"] else ": no epoch came near the linear probe, so all but the head is the base's"
    gain = 100 * (value["test_top1"] - value["linear_probe_test_top1"])
    rows = [
        ("task", f"{value['task']}  (base {value['base_id'][:8]})"),
        ("learned", f"{what_learned(value)}, and a head of {value['head_parameters']:,} parameters"),
        (
            "test top-1",
            f"{percent(value['test_top1'])}  ({gain:+.1f} points on the linear probe's "
            f"{percent(value['linear_probe_test_top1'])})",
        ),
        (
            "val top-1",
            f"{percent(value['val_top1'])}  at epoch {value['best_epoch']} of {value['epochs']}, "
            f"with the final head{unmoved}",
        ),
        ("files", str(Path(value["files"][0]).parent)),
        ("seconds", f"{value['seconds']:.1f}  on {value['device']}, in {value['precision']}"),
    ]
    show_facts(console, rows)


def what_learned(value: dict[str, Any]) -> str:
    """`48 coefficients, 9,216 numbers of melo (38,640 bytes)`."""
    parts = [count_coefficients(value["coefficients"], value["places"])] if value["coefficients"] else []
    if adapter := value["adapter"]:
        parts.append(f"{adapter['floats']:,} numbers of {adapter['name']} ({adapter['bytes']:,} bytes)")
    return ", ".join(parts) or "nothing of the network"
