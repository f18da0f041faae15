"""Families: modules of one role and shape, in order of depth, and how they are cut into groups and banks.

Groups follow g = ceil(l*G/L) in integers, l = 1..L counted within one role and shape, so group sizes differ by at
most one (RECAST, ICLR 2025, section 3).
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recast_cli.engine.layout.layout import Bank, Layout

Modules = Mapping[str, tuple[int, ...]]
"""Module name -> shape of its weight."""


@dataclass(frozen=True)
class Family:
    """All modules of one role and shape, in order of depth; banks never reach across families."""

    role: str
    shape: tuple[int, ...]
    modules: tuple[str, ...]


def find_families(modules: Modules) -> list[Family]:
    """Modules by role and shape, in order of depth."""
    families: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name in sorted(modules, key=depth_order):
        families[role_of(name), tuple(modules[name])].append(name)
    return [Family(role, shape, tuple(names)) for (role, shape), names in families.items()]


def role_of(name: str) -> str:
    """The name with `*` for every component that is a number: `blocks.3.attn.qkv` -> `blocks.*.attn.qkv`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def depth_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that orders numbers inside names by value: block 2 before block 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)|\.", name) if part)


def split_groups(modules: Sequence[str], groups: int) -> list[tuple[str, ...]]:
    """Cut L modules into G groups of neighbours by g = ceil(l*G/L), in integers, l = 1..L."""
    layers = len(modules)
    members: list[list[str]] = [[] for _ in range(groups)]
    for layer, name in enumerate(modules, start=1):
        members[-(-layer * groups // layers) - 1].append(name)
    return [tuple(names) for names in members]


def make_banks(family: Family, groups: int, templates: int | None = None) -> list[Bank]:
    """The banks of a family cut into `groups` groups; n = layers in each group unless `templates` says otherwise."""
    return [
        Bank(bank_name(names), family.role, number, names, family.shape, templates or len(names))
        for number, names in enumerate(split_groups(family.modules, groups), start=1)
    ]


def bank_name(modules: Sequence[str]) -> str:
    """First and last module in one name, `blocks.0-1.attn.qkv`; unique, as a module is first in one bank only."""
    pairs = zip(modules[0].split("."), modules[-1].split("."), strict=True)
    return ".".join(first if first == last else f"{first}-{last}" for first, last in pairs)


def preferred(families: Sequence[Family]) -> list[Family]:
    """Families of at least two modules: fused attention first, then by the weights they hold, the later one first."""

    def order(family: Family) -> tuple[bool, int]:
        fused_attention = "qkv" in family.role.rsplit(".", 1)[-1]
        return not fused_attention, -len(family.modules) * math.prod(family.shape)

    return sorted((family for family in reversed(families) if len(family.modules) > 1), key=order)


def pairs(family: Family) -> int:
    """The number of groups that puts the family's modules in pairs."""
    return -(-len(family.modules) // 2)


def in_order(name: str, sets: int, banks: Sequence[Bank]) -> Layout:
    """A layout with its banks in order of depth."""
    return Layout(name, sets, tuple(sorted(banks, key=lambda bank: depth_order(bank.modules[0]))))
