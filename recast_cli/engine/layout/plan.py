"""Plan a layout: modules in, banks out. Pure arithmetic on names and shapes; no weights, no torch."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import replace

from recast_cli.engine.errors import OptionError, RecastError, option, suggest
from recast_cli.engine.layout.families import (
    Family,
    Modules,
    depth_order,
    find_families,
    in_order,
    make_banks,
    pairs,
    preferred,
)
from recast_cli.engine.layout.layout import Bank, Layout
from recast_cli.engine.layout.published import PAPER_LAYOUTS, hint_of_roles, paper_layout

BUDGET = 49
PICK = 3
"""Which pick of `pick_layout` this is: one more where a later version picks another layout for the same network."""
DEPTHWISE = 8
"""Depthwise kernels that make a network one of depthwise convolutions."""


def plan_layout(
    modules: Modules,
    *,
    layout: str | None = None,
    patterns: Sequence[str] = (),
    groups: int | None = None,
    templates: int | None = None,
    sets: int | None = None,
    budget: int = BUDGET,
) -> Layout:
    """Plan the layout of a network.

    Without `layout` and without any of the free choices the tool picks an exact layout within `budget`
    (see `pick_layout`). A layout that is spelt out is built as it is, also over the budget.

    Args:
        modules: Names and weight shapes of the modules that may be reparameterised.
        layout: One of PAPER_LAYOUTS.
        patterns: Shell-style patterns of module names, e.g. `blocks.*.mlp.fc1`.
        groups: G, counted per role and shape; default: pairs of neighbours.
        templates: n; default: the number of layers in each group, which is exact.
        sets: K; default: 2 where that fits the budget, else 1.
        budget: The largest number of coefficients that the tool picks by itself.

    Returns:
        The layout; `layout.coefficients` is how many floats a task takes.

    Raises:
        RecastError: No module matches, or a number is out of range.

    Example:
        >>> modules = {f"blocks.{i}.attn.qkv": (576, 192) for i in range(12)}
        >>> plan_layout(modules).coefficients  # one for each module
        12
        >>> pairs = plan_layout(modules, groups=6, sets=2)  # two layers a group, K = 2
        >>> [bank.modules for bank in pairs.banks][0]
        ('blocks.0.attn.qkv', 'blocks.1.attn.qkv')
        >>> pairs.coefficients  # 12 layers * 2 templates * 2 sets
        48
    """
    for name, value in {"groups": groups, "templates": templates, "sets": sets, "budget": budget}.items():
        if value is not None and value < 1:
            raise OptionError(name, f"{value} is below 1", "Give a positive number.")
    if not modules:
        raise RecastError("The source has no linear or convolution weight", "RECAST has nothing to rewrite here.")
    free = bool(patterns) or any(value is not None for value in (groups, templates, sets))
    if layout is not None:
        if layout not in PAPER_LAYOUTS:
            raise OptionError("layout", f"{layout} is unknown", suggest(layout, PAPER_LAYOUTS))
        if free:
            others = f"{option('patterns')}, {option('groups')}, {option('templates')} and {option('sets')}"
            hint = f"Leave out {option('layout')}, or {others}."
            raise OptionError("layout", f"{layout} fixes modules, groups, templates and sets", hint)
        return paper_layout(modules, layout)
    if not free:
        return pick_layout(modules, budget)
    chosen = matching(modules, patterns) if patterns else preferred(find_families(modules))[:1]
    return free_layout(chosen, groups, templates, sets, budget)


def pick_layout(modules: Modules, budget: int = BUDGET) -> Layout:
    """The layout the tool picks for any network: exact, K = 1, at most `budget` coefficients.

    Networks of depthwise convolutions get two coefficients for each kernel, see `kernel_banks`. Any other network gets
    one for each module, n = 1: W = c * T, and the whole budget goes into reaching many modules, which gains more than
    mixing the weights of few (docs/evidence/which-layout.md). Families are taken whole while they fit, in the
    order of `preferred`; of a first one that does not fit, the deepest modules. Where no two modules share role and
    shape, the largest are taken.
    """
    if kernels := kernel_banks(modules, budget):
        return in_order("auto", 1, kernels)
    families = preferred(find_families(modules))
    if not families:
        largest = sorted(modules, key=lambda name: (-math.prod(modules[name]), depth_order(name)))[:budget]
        families = find_families({name: modules[name] for name in largest})
    first = families[0]
    if len(first.modules) > budget:
        families = [Family(first.role, first.shape, first.modules[-budget:])]
    banks: list[Bank] = []
    for family in families:
        if len(banks) + len(family.modules) <= budget:
            banks += make_banks(family, len(family.modules))
    return in_order("auto", 1, banks)


def kernel_banks(modules: Modules, budget: int) -> list[Bank]:
    """Banks of one kernel with a window each, cut into its mean and the rest, for networks of depthwise convolutions.

    As many of the first kernels as fit into the budget: the early ones gain most (docs/evidence/which-layout.md). None
    where a module is linear (a transformer's, or a ConvNeXt's, whose norms undo scales of depthwise kernels), or where
    so few kernels are depthwise that they say nothing of the network: a first convolution of grey images looks like
    one, too.
    """
    if any(len(shape) < 3 for shape in modules.values()):
        return []
    kernels = {name: shape for name, shape in modules.items() if math.prod(shape[2:]) > 1}
    if sum(shape[1] == 1 for shape in kernels.values()) < DEPTHWISE or budget < 2:
        return []
    families = find_families({name: kernels[name] for name in list(kernels)[: budget // 2]})
    banks = [bank for family in families for bank in make_banks(family, len(family.modules))]
    return [replace(bank, templates=2, means=True) for bank in banks]


def matching(modules: Modules, patterns: Sequence[str]) -> list[Family]:
    """Families of the modules that match any pattern. Raises RecastError for a pattern that matches none."""
    chosen = {}
    for pattern in patterns:
        names = fnmatch.filter(modules, pattern)
        if not names:
            raise OptionError("patterns", f"'{pattern}' matches no module", hint_of_roles(modules))
        chosen.update({name: modules[name] for name in names})
    return find_families(chosen)


def free_layout(
    families: Sequence[Family], groups: int | None, templates: int | None, sets: int | None, budget: int
) -> Layout:
    """A layout as the user spells it out; see `plan_layout` for the defaults of what is left open."""
    if not families:
        raise RecastError("No two modules share role and shape here", f"Say which to take with {option('patterns')}.")
    longest = max(len(family.modules) for family in families)
    if groups is not None and groups > longest:
        hint = f"Give at most {longest}; it counts per role and shape."
        raise OptionError("groups", f"{groups} is more than the {longest} layers of the longest role", hint)
    banks: list[Bank] = []
    for family in families:
        banks += make_banks(family, min(groups or pairs(family), len(family.modules)), templates)
    for bank in banks:
        if bank.templates > len(bank.modules):
            what = f"{bank.templates} is more than the {len(bank.modules)} layers of bank {bank.name}"
            hint = f"That many are exact already: give fewer, or leave {option('templates')} out for one per layer."
            raise OptionError("templates", what, hint)
    if sets is None:
        sets = next((k for k in (2, 1) if k * sum(len(b.modules) * b.templates for b in banks) <= budget), 1)
    return in_order("custom", sets, banks)
