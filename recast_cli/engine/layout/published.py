"""The layouts that were published with RECAST (ICLR 2025)."""

import math
from collections import defaultdict

from recast_cli.engine.errors import OptionError
from recast_cli.engine.layout.families import Family, Modules, find_families, in_order, make_banks, pairs, role_of
from recast_cli.engine.layout.layout import Layout

PAPER_LAYOUTS = ("paper-attention", "paper-mlp", "paper-both", "paper-resnet")
PAPER_SETS = 2


def paper_layout(modules: Modules, layout: str) -> Layout:
    """The published layouts, K = 2: pairs of neighbours for attention and MLP, whole stages for 3x3 convolutions."""
    if layout == "paper-resnet":
        banks = [bank for family in residual_stages(modules) for bank in make_banks(family, 1)]
    else:
        wanted = {"paper-attention": ("qkv",), "paper-mlp": ("fc1", "fc2"), "paper-both": ("qkv", "fc1", "fc2")}[layout]
        chosen = {name: shape for name, shape in modules.items() if name.rsplit(".", 1)[-1] in wanted}
        banks = [bank for family in find_families(chosen) for bank in make_banks(family, pairs(family))]
    if not banks:
        raise OptionError("layout", f"{layout} fits no module of this source", hint_of_roles(modules))
    return in_order(layout, PAPER_SETS, banks)


def residual_stages(modules: Modules) -> list[Family]:
    """3x3 convolutions by role, stage and shape, without each stage's first block: n = blocks - 1 is exact."""
    stages: dict[tuple[str, tuple[int, ...]], list[tuple[int, str]]] = defaultdict(list)
    first_block: dict[str, int] = {}
    for name, shape in modules.items():
        parts = name.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdigit()]
        if len(shape) != 4 or shape[2:] != (3, 3) or not numbers:
            continue
        block = int(parts[numbers[-1]])
        parts[numbers[-1]] = "*"
        stage = ".".join(parts)
        first_block[stage] = min(block, first_block.get(stage, block))
        stages[stage, tuple(shape)].append((block, name))
    families = []
    for (stage, shape), members in stages.items():
        names = tuple(name for block, name in sorted(members) if block > first_block[stage])
        if names:
            families.append(Family(stage, shape, names))
    return families


def hint_of_roles(modules: Modules) -> str:
    """`Roles here: …` for messages: the roles that hold most weights, at most eight."""
    weight: dict[str, int] = defaultdict(int)
    for name, shape in modules.items():
        weight[role_of(name)] += math.prod(shape)
    roles = sorted(weight, key=lambda role: (-weight[role], role))
    return "Roles here: " + ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "") + "."
