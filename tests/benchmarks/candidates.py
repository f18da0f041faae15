"""Ways to spend 48 floats on a network: what each makes of a model, and the parameters that it leaves to be trained.

All are exact: with the coefficients that they start with the network is the source.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from typing import Any

import torch
from parts import (
    after,
    at_random,
    bands,
    beside_mean,
    beside_mirror,
    centre,
    directions,
    four_and_rest,
    frequencies,
    masks,
    mean,
    mean_row,
    query_and_value,
    signs,
    stretched,
    top,
    top_and_rest,
    whole,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recast_cli.engine.architecture.modules import find_modules
from recast_cli.engine.layout.families import find_families, preferred
from recast_cli.engine.layout.plan import BUDGET

FOUR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
Candidate = Callable[[nn.Module], list[nn.Parameter]]


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


def blocks(model: Any) -> list[Any]:
    """The transformer's blocks."""
    return list(model.blocks)


def each(*plans: tuple[str, Callable[[Tensor], list[Tensor]]], first: int = 0, step: int = 1) -> Candidate:
    """For every block from `first` on: (module, how its weight is cut)."""

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        chosen = blocks(model)[first::step]
        return [cut(b.get_submodule(n), how(b.get_submodule(n).weight.detach())) for b in chosen for n, how in plans]

    return candidate


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


def scaled(model: nn.Module) -> list[nn.Parameter]:
    """One coefficient for each module of the roles with most weights: what `mimic` picks where nothing is depthwise."""
    families = preferred(find_families(find_modules(model)))
    names: list[str] = []
    for family in families:
        names += family.modules if len(names) + len(family.modules) <= BUDGET else ()
    return pieces(whole, *names)(model)


def blended(basis: Callable[[Tensor], list[Tensor]], *patterns: str) -> Candidate:
    """For each module that matches, coefficients 1 and 0 of its weight and of what `basis` makes of it beside."""

    def candidate(model: nn.Module) -> list[nn.Parameter]:
        names = [name for name in find_modules(model) if any(fnmatch.fnmatch(name, each) for each in patterns)]
        found = []
        for module in map(model.get_submodule, names):
            parts = torch.stack(basis(module.weight.detach().clone()))
            module.weight = nn.Parameter(torch.tensor([1.0, 0.0]))
            parametrize.register_parametrization(module, "weight", Pieces(parts), unsafe=True)
            found.append(module.parametrizations.weight.original)
        return found

    return candidate


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
    "dw and its mean": blended(beside_mean, "blocks.*.conv_dw"),
    "dw and its mirror": blended(beside_mirror, "blocks.*.conv_dw"),
    "dw, stem and their means": blended(beside_mean, "conv_stem", "blocks.*.conv_dw"),
    "dw, stem and their mirrors": blended(beside_mirror, "conv_stem", "blocks.*.conv_dw"),
    "scaled": scaled,
    "pw, dw, pwl of stages 1 to 6": pieces(whole, "blocks.[1-6].*"),
    "pw and pwl": pieces(whole, "blocks.*.conv_pw", "blocks.*.conv_pwl"),
    "pw and dw": pieces(whole, "blocks.*.conv_pw", "blocks.*.conv_dw"),
    "dw and pwl": pieces(whole, "blocks.*.conv_dw", "blocks.*.conv_pwl"),
    "pwl": pieces(whole, "blocks.*.conv_pwl"),
    "output halves of pwl": pieces(lambda tensor: masks(tensor, 0, 2), "blocks.*.conv_pwl"),
    "input halves of pwl": pieces(lambda tensor: masks(tensor, 1, 2), "blocks.*.conv_pwl"),
    "signs of dw": pieces(signs, "blocks.*.conv_dw"),
    "signs of pw": pieces(signs, "blocks.*.conv_pw"),
    "signs of pwl": pieces(signs, "blocks.*.conv_pwl"),
    "frequencies of dw": pieces(frequencies, "blocks.*.conv_dw"),
    "frequencies of dw and stem": pieces(frequencies, "conv_stem", "blocks.*.conv_dw"),
    "frequencies of dw, stages 0 to 3": pieces(frequencies, "blocks.[0-3].*.conv_dw"),
    "frequencies of stem and stages 0 to 3": pieces(frequencies, "conv_stem", "blocks.[0-3].*.conv_dw"),
    "frequencies of dw, stages 4 to 6": pieces(frequencies, "blocks.[4-6].*.conv_dw"),
    "means of dw": pieces(mean, "blocks.*.conv_dw"),
    "centres of dw": pieces(centre, "blocks.*.conv_dw"),
    "directions of dw, last 16": pieces(directions, "blocks.[1-6].*.conv_dw"),
    "frequencies of dw, pwl of stages 3 to 6": both(
        pieces(frequencies, "blocks.*.conv_dw"), pieces(whole, "blocks.[3-6].*.conv_pwl")
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
    "top of all four": each(*((name, top) for name in FOUR)),
    "top and rest of qkv and fc2": each(*((name, top_and_rest) for name in ("attn.qkv", "mlp.fc2"))),
    "top and rest of proj and fc1": each(*((name, top_and_rest) for name in ("attn.proj", "mlp.fc1"))),
    "top and rest of qkv and fc1": each(*((name, top_and_rest) for name in ("attn.qkv", "mlp.fc1"))),
    "top and rest of proj and fc2": each(*((name, top_and_rest) for name in ("attn.proj", "mlp.fc2"))),
    "top and rest of fc1 and fc2": each(*((name, top_and_rest) for name in ("mlp.fc1", "mlp.fc2"))),
    "top and rest of qkv and proj": each(*((name, top_and_rest) for name in ("attn.qkv", "attn.proj"))),
    "fc2 cut, qkv, proj": each(("mlp.fc2", stretched), ("attn.qkv", whole), ("attn.proj", whole)),
    "fc2 cut, qkv, fc1": each(("mlp.fc2", stretched), ("attn.qkv", whole), ("mlp.fc1", whole)),
    "fc2 cut, proj, fc1": each(("mlp.fc2", stretched), ("attn.proj", whole), ("mlp.fc1", whole)),
    "qkv and fc2 cut": each(("attn.qkv", stretched), ("mlp.fc2", stretched)),
    "qkv and fc2 cut, no steps": each(("attn.qkv", after(0)), ("mlp.fc2", after(0))),
    "qkv and fc2 cut, one step": each(("attn.qkv", after(1)), ("mlp.fc2", after(1))),
    "qkv and fc2 cut, five steps": each(("attn.qkv", after(5)), ("mlp.fc2", after(5))),
    "qkv and fc2 cut at random": each(("attn.qkv", at_random), ("mlp.fc2", at_random)),
    "qkv and fc2 cut, mean rows": each(("attn.qkv", mean_row), ("mlp.fc2", mean_row)),
    "24: fc2 cut": each(("mlp.fc2", stretched)),
    "24: qkv cut": each(("attn.qkv", stretched)),
    "24: qkv and fc2 cut, last half": each(("attn.qkv", stretched), ("mlp.fc2", stretched), first=6),
    "top four and rest of qkv and fc2": each(*((name, four_and_rest) for name in ("attn.qkv", "mlp.fc2"))),
    "top of proj and fc1, qkv, fc2": each(
        ("attn.qkv", whole), ("mlp.fc2", whole), ("attn.proj", top), ("mlp.fc1", top)
    ),
    "top of qkv and fc2, proj, fc1": each(
        ("attn.qkv", top), ("mlp.fc2", top), ("attn.proj", whole), ("mlp.fc1", whole)
    ),
    "96: top and rest of all four": each(*((name, top_and_rest) for name in FOUR)),
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
