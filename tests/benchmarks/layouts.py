"""Which coefficients are worth having: many ways to spend 48 floats on a network, by validation accuracy.

    python tests/benchmarks/layouts.py base.safetensors flowers17 birds50 cifar10-small --image-size 112
    python tests/benchmarks/layouts.py mobilenetv2.safetensors flowers17 birds50 cifar10-small --image-size 112
    python tests/benchmarks/layouts.py base.safetensors flowers17 --only "scalars" "heads of proj, fc2"
    python tests/benchmarks/layouts.py base.safetensors cifar10 --draw 50 100 --seeds 0 1 2 --only "scalars"

All are exact: at the start the network is the source. What won is `pick_layout`; nothing else of this is in
the tool. No test image is opened: what `adapt` would train on and validate on is cut anew, half and half by a hash, so
that validation is large enough to tell one layout from another. The more candidates the same images have judged, the
less the best of them is worth: `--draw` takes others for every seed. `learned` fits low-rank templates on the other
tasks together (leave one task out), and a task then learns how much of them it wants.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from candidates import CANDIDATES, FOUR, INVERTED, TRANSFORMER, Candidate, Pieces, blocks
from common import arguments, report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from recast_cli.engine.adapt.fit import learn_task, probe_network
from recast_cli.engine.adapt.learner import Learner
from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.adapt.state import State
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.base.base import Base
from recast_cli.engine.base.file import load_base
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.splits import split_folder
from recast_cli.engine.images.transforms import augment, draw_crops, normalise
from recast_cli.engine.model.attach import merge
from recast_cli.engine.runtime.device import choose_device, ready
from recast_cli.engine.runtime.precision import precision, training_precision
from recast_cli.engine.task.options import AdaptOptions


class Task(NamedTuple):
    """What one task is learned from, and the linear probe on it."""

    name: str
    data: TrainingData
    probe: Probe


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("base", type=Path, help="from `recast mimic`")
    parser.add_argument("data", type=Path, nargs="+", metavar="DIR", help="image folders")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(CANDIDATES)}")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.02, 0.05], help="the better one counts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="their mean counts")
    parser.add_argument(
        "--draw",
        type=int,
        nargs=2,
        metavar=("TRAIN", "VAL"),
        help="images of each class to train and to validate on, others for every seed (default: all, half and half)",
    )
    parser.add_argument("--head-lr", type=float, default=AdaptOptions().head_lr, help="(default: %(default)s)")
    parser.add_argument("--log", type=Path, default=Path("layouts.jsonl"), help="finished runs; the next call goes on")
    options = parser.parse_args()
    base = load_base(options.base)
    cuts = options.seeds if options.draw else options.seeds[:1]  # others for every seed, or one for all
    opened = [[open_task(base, data, seed, options) for data in options.data] for seed in cuts]
    drawn = dict(zip(options.seeds, opened if options.draw else opened * len(options.seeds), strict=True))
    names = options.only or [*(TRANSFORMER if "vit" in base.known_architecture().name else INVERTED)]
    rows = []
    for name in names:
        best: dict[str, float] = {}
        for place, data in enumerate(options.data):
            runs = [
                [
                    logged(options.log, base, tasks[place], name, lr, seed, options, tasks)
                    for seed, tasks in drawn.items()
                ]
                for lr in options.lr
            ]
            best[data.name] = 100 * max(mean(run["val_top1"] for run in each) for each in runs)
            floats = runs[0][0]["floats"]
        rows.append({"coefficients": name, "floats": floats, **best, "mean": sum(best.values()) / len(best)})
    probes = {
        data.name: 100 * mean(tasks[place].probe.val_top1 for tasks in drawn.values())
        for place, data in enumerate(options.data)
    }
    rows.append({"coefficients": "linear probe", "floats": 0, **probes, "mean": sum(probes.values()) / len(probes)})
    report("layouts", rows, options.json, image_size=options.image_size, epochs=options.epochs, rates=options.lr)


def open_task(base: Base, data: Path, seed: int, options: Any) -> Task:
    """The images of a folder that are not for testing, cut in two, and the probe on them."""
    split = split_folder(data, 0, False)
    config = base.known_architecture().preprocessing.at(options.image_size)
    salt = f"{seed} " if options.draw else ""
    by_class: dict[int, list[Any]] = {}
    for item in sorted(
        [*split.train, *split.val], key=lambda item: hashlib.sha256(f"{salt}{item.path}".encode()).digest()
    ):
        by_class.setdefault(item.label, []).append(item)
    cuts = {"train": slice(0, None, 2), "val": slice(1, None, 2)}
    if options.draw:
        train, val = options.draw
        cuts = {"train": slice(train), "val": slice(train, train + val)}
    images = {
        part: decode(data, [item for items in by_class.values() for item in items[cut]], config)
        for part, cut in cuts.items()
    }
    device = choose_device()
    model = ready(merge(base, image_size=options.image_size), device)
    training_data = TrainingData(images, len(split.classes), config, AdaptOptions())
    return Task(data.name, training_data, probe_network(model, training_data))


def logged(
    log: Path, base: Base, task: Task, name: str, lr: float, seed: int, options: Any, tasks: list[Task]
) -> dict[str, Any]:
    """A finished run of the log, else a new one, which is added."""
    key = [name, task.name, lr, options.head_lr, seed, options.epochs, options.image_size, base.base_id]
    key += options.draw or []
    for line in log.read_text().splitlines() if log.exists() else ():
        if (known := json.loads(line))["key"] == key:
            return known
    candidate = CANDIDATES[name] or learned(base, [each for each in tasks if each is not task], options)
    model = ready(merge(base, image_size=options.image_size), choose_device())
    parameters = candidate(model)
    reached = fit(Learner(model, base.vector, parameters), task, lr, seed, options)
    found = {"key": key, "floats": sum(each.numel() for each in parameters), "val_top1": reached.val_top1}
    with log.open("a") as stream:
        stream.write(json.dumps(found) + "\n")
    print(f"{task.name}  {name}  lr {lr}  seed {seed}  val {100 * found['val_top1']:.1f}", flush=True)
    return found


def fit(
    learner: Learner, task: Task, lr: float, seed: int, options: Any, save: Callable[[State], None] | None = None
) -> State:
    """What `adapt` does, from the linear probe to the head that is solved once more."""
    recipe = AdaptOptions(epochs=options.epochs, patience=0, lr=lr, head_lr=options.head_lr, seed=seed)
    return learn_task(learner, task.data._replace(options=recipe), probe=task.probe, save=save).state


def learned(base: Base, others: list[Task], options: Any, rank: int = 4) -> Candidate:
    """Templates c T + B A fitted on other tasks together; pairs of neighbouring layers share two coefficients."""
    deltas = fit_templates(base, others, options, rank)

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        shared: dict[tuple[int, str], nn.Parameter] = {}
        for number, block in enumerate(blocks(model)):
            for name in FOUR:
                module = block.get_submodule(name)
                both = shared.setdefault((number // 2, name), nn.Parameter(torch.tensor([1.0, 0.5])))
                parts = torch.stack([module.weight.detach(), deltas[number, name]])
                module.weight = both
                parametrize.register_parametrization(module, "weight", Pieces(parts), unsafe=True)
                module.parametrizations.weight.original = both  # one parameter for the pair
        return list(shared.values())

    return candidate


_learned: dict[tuple[int, ...], dict[tuple[int, str], Tensor]] = {}


def fit_templates(base: Base, tasks: list[Task], options: Any, rank: int) -> dict[tuple[int, str], Tensor]:
    """What low-rank updates and scales of all four modules, learned on several tasks at a time, change of W."""
    key = tuple(id(task) for task in tasks)
    if key in _learned:
        return _learned[key]
    device, data = choose_device(), base.known_architecture().preprocessing
    model = ready(merge(base, image_size=options.image_size), device)
    generator = torch.Generator().manual_seed(0)
    places = [(number, name, b.get_submodule(name)) for number, b in enumerate(blocks(model)) for name in FOUR]

    class Update(nn.Module):
        def __init__(self, tensor: Tensor) -> None:
            super().__init__()
            self.register_buffer("tensor", tensor)
            self.a = nn.Parameter(torch.randn(rank, tensor.shape[1], generator=generator) / tensor.shape[1] ** 0.5)
            self.b = nn.Parameter(torch.zeros(len(tensor), rank))

        def forward(self, scale: Tensor) -> Tensor:
            with torch.autocast(scale.device.type, enabled=False):
                return scale * self.tensor + self.b @ self.a

    before = {(number, name): module.weight.detach().clone() for number, name, module in places}
    for number, name, module in places:
        module.weight = nn.Parameter(torch.ones(1))
        parametrize.register_parametrization(module, "weight", Update(before[number, name]), unsafe=True)
    updates = [module.parametrizations.weight for *_, module in places]
    heads = [[nn.Parameter(part.clone()) for part in task.probe.head] for task in tasks]
    groups: list[tuple[list[nn.Parameter], float]] = [
        ([each.original for each in updates], 0.02),
        ([part for each in updates for part in (each[0].a, each[0].b)], 2e-3),
        ([part for head in heads for part in head], 1e-3),
    ]
    optimizer = torch.optim.AdamW([{"params": each, "lr": rate} for each, rate in groups], weight_decay=0.0)
    dtype = training_precision(model, device)
    steps = options.epochs * max(len(task.data.images["train"]) for task in tasks) // 24
    for step in range(steps):
        for group, (_, rate) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        for task, head in zip(tasks, heads, strict=True):
            images = task.data.images["train"]
            rows = torch.randint(len(images), (24,), generator=generator)
            pixels = augment(normalise(images.pixels[rows], data), draw_crops(24, generator))
            with precision(device, dtype):
                F.cross_entropy(F.linear(features(model, pixels), *head), images.labels[rows]).backward()
        optimizer.step()
    _learned[key] = {(number, name): (module.weight - before[number, name]).detach() for number, name, module in places}
    return _learned[key]


if __name__ == "__main__":
    main()
