"""Which coefficients are worth having: many ways to spend 48 floats on a network, by validation accuracy.

    python tests/benchmarks/layouts.py base.safetensors flowers17 birds50 cifar10-small --image-size 112
    python tests/benchmarks/layouts.py mobilenetv2.safetensors flowers17 birds50 cifar10-small --image-size 112
    python tests/benchmarks/layouts.py base.safetensors flowers17 --only "scalars" "heads of proj, fc2"

All are exact: with coefficients of 1 the network is the source. What won is `pick_layout`; nothing else of this is in
the tool. No test image is opened: what `adapt` would train on and validate on is cut anew, half and half by a hash, so
that validation is large enough to tell one layout from another. `learned` fits low-rank templates on the other tasks
together (leave one task out), and a task then learns how much of them it wants.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import arguments, report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from recast_cli.engine.attach import merge
from recast_cli.engine.base import Base, load_base
from recast_cli.engine.images import Images, decode, normalise
from recast_cli.engine.learn import learn, probe_model, start_state
from recast_cli.engine.network import features, find_modules
from recast_cli.engine.options import AdaptOptions
from recast_cli.engine.plan import pick_layout
from recast_cli.engine.probe import Probe
from recast_cli.engine.run import augment, choose_device, draw_windows, precision, ready, training_precision
from recast_cli.engine.splits import split_folder
from recast_cli.engine.train import Part, State

FOUR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
Candidate = Callable[[nn.Module], list[nn.Parameter]]


class Task(NamedTuple):
    """Images of one task, and the linear probe on them."""

    name: str
    images: dict[str, Images]
    classes: int
    probe: Probe


class Pieces(nn.Module):
    """W = rest + sum_i c_i * part_i, with parts (n, *shape)."""

    def __init__(self, parts: Tensor, rest: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("parts", parts)
        self.register_buffer("rest", torch.zeros_like(parts[0]) if rest is None else rest)

    def forward(self, coefficients: Tensor) -> Tensor:
        with torch.autocast(coefficients.device.type, enabled=False):
            return self.rest + torch.tensordot(coefficients, self.parts, 1)


def cut(module: nn.Module, parts: list[Tensor], name: str = "weight") -> nn.Parameter:
    """Give each part of a module's tensor a coefficient of 1; what no part has stays."""
    tensor = getattr(module, name).detach().clone()
    stacked = torch.stack(parts)
    setattr(module, name, nn.Parameter(torch.ones(len(parts))))
    parametrize.register_parametrization(module, name, Pieces(stacked, tensor - stacked.sum(0)), unsafe=True)
    return getattr(module.parametrizations, name).original  # type: ignore[union-attr, no-any-return]


def masks(tensor: Tensor, dim: int, pieces: int) -> list[Tensor]:
    """`pieces` tensors, each with its share of the rows (dim 0) or columns (dim 1), zero elsewhere."""
    found = []
    for part in range(pieces):
        mask = torch.zeros_like(tensor)
        place = slice(part * tensor.shape[dim] // pieces, (part + 1) * tensor.shape[dim] // pieces)
        mask[(slice(None),) * dim + (place,)] = 1
        found.append(tensor * mask)
    return found


def bands(tensor: Tensor, pieces: int) -> list[Tensor]:
    """Parts of equal energy from the largest singular values to the smallest."""
    u, s, vt = torch.linalg.svd(tensor, full_matrices=False)
    energy = s.square().cumsum(0) / s.square().sum()
    cuts = [0, *(int((energy < part / pieces).sum()) + 1 for part in range(1, pieces)), len(s)]
    return [(u[:, a:b] * s[a:b]) @ vt[a:b] for a, b in itertools.pairwise(cuts)]


def blocks(model: Any) -> list[Any]:
    """The transformer's blocks."""
    return list(model.blocks)


def each(*plans: tuple[str, Callable[[Tensor], list[Tensor]]], first: int = 0, step: int = 1) -> Candidate:
    """For every block from `first` on: (module, how its weight is cut)."""

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        chosen = blocks(model)[first::step]
        return [cut(b.get_submodule(n), how(b.get_submodule(n).weight.detach())) for b in chosen for n, how in plans]

    return candidate


def whole(tensor: Tensor) -> list[Tensor]:
    """One piece."""
    return [tensor]


def query_and_value(tensor: Tensor) -> list[Tensor]:
    """q and v of a fused weight; scaling k does what scaling q does."""
    return masks(tensor, 0, 3)[::2]


def scalars(*names: str, first: int = 0, step: int = 1) -> Candidate:
    """One coefficient for each of these modules of each block."""
    return each(*((name, whole) for name in names), first=first, step=step)


def norms(model: nn.Module) -> list[nn.Parameter]:
    """One coefficient for the weight and one for the bias of both normalisations of each block."""
    places = [(norm, name) for b in blocks(model) for norm in (b.norm1, b.norm2) for name in ("weight", "bias")]
    return [cut(norm, [getattr(norm, name).detach().clone()], name) for norm, name in places]


def depth_functions(count: int) -> Candidate:
    """Coefficients 1 + sum_j a_j cos(pi j (l + 1/2) / L) of depth l, `count` of them for each of twelve tensors."""
    tensors = [(name, "weight", (0, 1)) for name in FOUR[1:]] + [(name, "bias", (0, 1)) for name in FOUR[1:]]
    tensors += [("attn.qkv", kind, place) for kind in ("weight", "bias") for place in ((0, 3), (2, 3))]
    tensors += [("norm1", "bias", (0, 1)), ("norm2", "bias", (0, 1))]

    class Function(nn.Module):
        def __init__(self, tensor: Tensor, parts: list[Tensor], row: Tensor, shared: list[nn.Parameter]) -> None:
            super().__init__()
            self.register_buffer("tensor", tensor)
            self.parts, self.row, self.shared = parts, row, shared

        def forward(self, _: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return self.tensor + sum((self.row @ a) * p for a, p in zip(self.shared, self.parts, strict=True))

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        depth = len(blocks(model))
        grid = (torch.arange(depth) + 0.5)[:, None] * torch.arange(count) * math.pi / depth
        shared = {tensor: nn.Parameter(torch.zeros(count)) for tensor in tensors}
        for block, row in zip(blocks(model), grid.cos(), strict=True):
            for module, name in dict.fromkeys(tensor[:2] for tensor in tensors):
                own = [tensor for tensor in tensors if tensor[:2] == (module, name)]
                target = block.get_submodule(module)
                value = getattr(target, name).detach().clone()
                parts = [masks(value, 0, pieces)[part] for _, _, (part, pieces) in own]
                setattr(target, name, nn.Parameter(torch.zeros(1), requires_grad=False))
                function = Function(value, parts, row, [shared[tensor] for tensor in own])
                parametrize.register_parametrization(target, name, function, unsafe=True)
        return list(shared.values())

    return candidate


def named(*patterns: str) -> Candidate:
    """One coefficient for each linear and convolution module that matches a pattern."""

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        names = [name for name in find_modules(model) if any(fnmatch.fnmatch(name, each) for each in patterns)]
        return [cut(module, [module.weight.detach().clone()]) for module in map(model.get_submodule, names)]

    return candidate


def picked(model: nn.Module) -> list[nn.Parameter]:
    """What `mimic` picks by itself."""
    return named(*pick_layout(find_modules(model)).modules)(model)


def halves(*patterns: str, dim: int) -> Candidate:
    """Two coefficients for each module that matches, one for each half of its outputs (dim 0) or inputs (dim 1)."""

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        names = [name for name in find_modules(model) if any(fnmatch.fnmatch(name, each) for each in patterns)]
        return [cut(module, masks(module.weight.detach(), dim, 2)) for module in map(model.get_submodule, names)]

    return candidate


def signs(tensor: Tensor) -> list[Tensor]:
    """What excites and what inhibits."""
    return [tensor.clamp_min(0), tensor.clamp_max(0)]


def frequencies(tensor: Tensor) -> list[Tensor]:
    """The mean of every kernel over its window, and what is left."""
    mean = tensor.mean((2, 3), keepdim=True).expand_as(tensor)
    return [mean, tensor - mean]


def centre(tensor: Tensor) -> list[Tensor]:
    """The middle of every kernel's window, and what is around it."""
    middle = torch.zeros_like(tensor)
    y, x = (size // 2 for size in tensor.shape[2:])
    middle[..., y, x] = tensor[..., y, x]
    return [middle, tensor - middle]


def directions(tensor: Tensor) -> list[Tensor]:
    """The mean of every kernel over its window, what changes along one axis alone, and what is left."""
    mean = tensor.mean((2, 3), keepdim=True).expand_as(tensor)
    rows, columns = tensor.mean(3, keepdim=True) - mean, tensor.mean(2, keepdim=True) - mean
    return [mean, rows + columns, tensor - mean - rows - columns]


def both(*candidates: Candidate) -> Candidate:
    """All coefficients of several candidates, which cut different modules."""
    return lambda model: [each for candidate in candidates for each in candidate(model)]


def pieces(how: Callable[[Tensor], list[Tensor]], *patterns: str) -> Candidate:
    """As many coefficients for each module that matches as `how` cuts its weight into parts."""

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        names = [name for name in find_modules(model) if any(fnmatch.fnmatch(name, each) for each in patterns)]
        return [cut(module, how(module.weight.detach())) for module in map(model.get_submodule, names)]

    return candidate


def biases(*patterns: str) -> Candidate:
    """One coefficient for the bias of each normalisation that matches."""

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        found = [m for n, m in model.named_modules() if any(fnmatch.fnmatch(n, each) for each in patterns)]
        return [cut(norm, [norm.bias.detach().clone()], "bias") for norm in found]

    return candidate


INVERTED: dict[str, Candidate | None] = {
    "picked": picked,
    "pw, dw, pwl of stages 1 to 6": named("blocks.[1-6].*"),
    "pw and pwl": named("blocks.*.conv_pw", "blocks.*.conv_pwl"),
    "pw and dw": named("blocks.*.conv_pw", "blocks.*.conv_dw"),
    "dw and pwl": named("blocks.*.conv_dw", "blocks.*.conv_pwl"),
    "pwl": named("blocks.*.conv_pwl"),
    "output halves of pwl": halves("blocks.*.conv_pwl", dim=0),
    "input halves of pwl": halves("blocks.*.conv_pwl", dim=1),
    "signs of dw": pieces(signs, "blocks.*.conv_dw"),
    "signs of pw": pieces(signs, "blocks.*.conv_pw"),
    "signs of pwl": pieces(signs, "blocks.*.conv_pwl"),
    "frequencies of dw": pieces(frequencies, "blocks.*.conv_dw"),
    "centres of dw": pieces(centre, "blocks.*.conv_dw"),
    "directions of dw, last 16": pieces(directions, "blocks.[1-6].*.conv_dw"),
    "frequencies of dw, pwl of stages 3 to 6": both(
        pieces(frequencies, "blocks.*.conv_dw"), named("blocks.[3-6].*.conv_pwl")
    ),
    "biases of stages 1 to 6": biases("blocks.[1-6].*.bn?"),
}
"""For networks of inverted residual blocks, as MobileNetV2."""
TRANSFORMER: dict[str, Candidate | None] = {
    "scalars": scalars(*FOUR),
    "q, v, fc1, fc2": each(("attn.qkv", query_and_value), ("mlp.fc1", whole), ("mlp.fc2", whole)),
    "norms": norms,
    "heads of proj, fc2": each(("attn.proj", lambda tensor: masks(tensor, 1, 3)), ("mlp.fc2", whole)),
    "bands of proj and fc2": each(*((name, lambda tensor: bands(tensor, 2)) for name in ("attn.proj", "mlp.fc2"))),
    "input halves of proj and fc2": each(*((n, lambda t: masks(t, 1, 2)) for n in ("attn.proj", "mlp.fc2"))),
    "output halves of proj and fc2": each(*((n, lambda t: masks(t, 0, 2)) for n in ("attn.proj", "mlp.fc2"))),
    "functions of depth, 12 x 4": depth_functions(4),
    "q, v, proj, fc1, fc2 and k, last 8": each(
        ("attn.qkv", lambda tensor: masks(tensor, 0, 3)), *((n, whole) for n in FOUR[1:]), first=4
    ),
    # half the floats: what to leave out where modules outnumber the budget
    "24: qkv, fc2": scalars("attn.qkv", "mlp.fc2"),
    "24: proj, fc2": scalars("attn.proj", "mlp.fc2"),
    "24: fc1, fc2": scalars("mlp.fc1", "mlp.fc2"),
    "24: qkv, fc1": scalars("attn.qkv", "mlp.fc1"),
    "24: all four of every other block": scalars(*FOUR, first=1, step=2),
    "24: all four of the last half": scalars(*FOUR, first=6),
    "signs of fc1 and fc2": each(("mlp.fc1", signs), ("mlp.fc2", signs)),
    "signs of proj and fc2": each(("attn.proj", signs), ("mlp.fc2", signs)),
    "learned": None,  # it depends on the task
}
CANDIDATES = TRANSFORMER | INVERTED


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("base", type=Path, help="from `recast mimic`")
    parser.add_argument("data", type=Path, nargs="+", metavar="DIR", help="image folders")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(CANDIDATES)}")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.02, 0.05], help="the better one counts")
    parser.add_argument("--log", type=Path, default=Path("layouts.jsonl"), help="finished runs; the next call goes on")
    options = parser.parse_args()
    base = load_base(options.base)
    tasks = [open_task(base, data, options.image_size) for data in options.data]
    names = options.only or [*(TRANSFORMER if "vit" in base.known_architecture().name else INVERTED)]
    rows = []
    for name in names:
        best: dict[str, float] = {}
        for task in tasks:
            runs = [logged(options.log, base, task, name, lr, options, tasks) for lr in options.lr]
            best[task.name] = 100 * max(run["val_top1"] for run in runs)
            floats = runs[0]["floats"]
        rows.append({"coefficients": name, "floats": floats, **best, "mean": sum(best.values()) / len(best)})
    probes = {task.name: 100 * task.probe.val_top1 for task in tasks}
    rows.append({"coefficients": "linear probe", "floats": 0, **probes, "mean": sum(probes.values()) / len(probes)})
    report("layouts", rows, options.json, image_size=options.image_size, epochs=options.epochs, rates=options.lr)


def open_task(base: Base, data: Path, size: int) -> Task:
    """The images of a folder that are not for testing, cut half and half, and the probe on them."""
    split, config = split_folder(data, 0, False), base.known_architecture().data
    by_class: dict[int, list[Any]] = {}
    for item in sorted([*split.train, *split.val], key=lambda item: hashlib.sha256(item.path.encode()).digest()):
        by_class.setdefault(item.label, []).append(item)
    parts = {
        "train": [item for items in by_class.values() for item in items[::2]],
        "val": [item for items in by_class.values() for item in items[1::2]],
    }
    images = {part: decode(data, items, config, size) for part, items in parts.items()}
    device = choose_device()
    model = ready(merge(base, image_size=size), device)
    probe = probe_model(model, images, len(split.classes), None, config, device, None)
    return Task(data.name, images, len(split.classes), probe)


def logged(log: Path, base: Base, task: Task, name: str, lr: float, options: Any, tasks: list[Task]) -> dict[str, Any]:
    """A finished run of the log, else a new one, which is added."""
    key = [name, task.name, lr, options.epochs, options.image_size, base.base_id]
    for line in log.read_text().splitlines() if log.exists() else ():
        if (known := json.loads(line))["key"] == key:
            return known
    candidate = CANDIDATES[name] or learned(base, [each for each in tasks if each is not task], options)
    model = ready(merge(base, image_size=options.image_size), choose_device())
    parameters = candidate(model)
    reached = fit(model, parameters, task, lr, base, options)
    found = {"key": key, "floats": sum(each.numel() for each in parameters), "val_top1": reached.val_top1}
    with log.open("a") as stream:
        stream.write(json.dumps(found) + "\n")
    print(f"{task.name}  {name}  lr {lr}  val {100 * found['val_top1']:.1f}", flush=True)
    return found


def fit(model: nn.Module, parameters: list[nn.Parameter], task: Task, lr: float, base: Base, options: Any) -> State:
    """What `adapt` does, from the linear probe to the head that is solved once more."""
    recipe = AdaptOptions(epochs=options.epochs, patience=0, lr=lr)
    data, state = base.known_architecture().data, start_state(parameters, task.probe, recipe)
    solve = partial(probe_model, model, task.images, task.classes, None, data, choose_device(), None)
    return learn(model, [Part(parameters, lr)], state, task.images, data, recipe, None, solve)


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


_learned: dict[tuple[str, ...], dict[tuple[int, str], Tensor]] = {}


def fit_templates(base: Base, tasks: list[Task], options: Any, rank: int) -> dict[tuple[int, str], Tensor]:
    """What low-rank updates and scales of all four modules, learned on several tasks at a time, change of W."""
    key = tuple(task.name for task in tasks)
    if key in _learned:
        return _learned[key]
    device, data = choose_device(), base.known_architecture().data
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
    heads = [[nn.Parameter(task.probe.weight.clone()), nn.Parameter(task.probe.bias.clone())] for task in tasks]
    groups: list[tuple[list[nn.Parameter], float]] = [
        ([each.original for each in updates], 0.02),
        ([part for each in updates for part in (each[0].a, each[0].b)], 2e-3),
        ([part for head in heads for part in head], 1e-3),
    ]
    optimizer = torch.optim.AdamW([{"params": each, "lr": rate} for each, rate in groups], weight_decay=0.0)
    dtype, steps = training_precision(model, device), options.epochs * max(len(t.images["train"]) for t in tasks) // 24
    for step in range(steps):
        for group, (_, rate) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        for task, head in zip(tasks, heads, strict=True):
            images = task.images["train"]
            rows = torch.randint(len(images), (24,), generator=generator)
            pixels = augment(normalise(images.pixels[rows], data), draw_windows(24, generator))
            with precision(device, dtype):
                F.cross_entropy(F.linear(features(model, pixels), *head), images.labels[rows]).backward()
        optimizer.step()
    _learned[key] = {(number, name): (module.weight - before[number, name]).detach() for number, name, module in places}
    return _learned[key]


if __name__ == "__main__":
    main()
