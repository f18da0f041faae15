"""Layouts that the user spells out, and the one the tool picks within a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout

BLOCKS = (
    {f"blocks.{i}.attn.qkv": (96, 32) for i in range(12)}
    | {f"blocks.{i}.mlp.fc1": (128, 32) for i in range(12)}
    | {"patch_embed.proj": (32, 3, 8, 8)}
)


@st.composite
def networks(draw):
    """Module names and shapes of up to four roles."""
    modules = {}
    for role in range(draw(st.integers(1, 4))):
        for layer in range(draw(st.integers(1, 70))):
            modules[f"stage.{layer}.part{role}"] = (draw(st.integers(1, 2)), 4)
    return modules


@given(networks(), st.integers(1, 60))
def test_what_the_tool_picks_is_exact_and_within_the_budget(modules, budget):
    layout = plan_layout(modules, budget=budget)
    assert 1 <= layout.coefficients <= budget
    assert all(bank.exact for bank in layout.banks)
    assert len(set(layout.modules)) == len(layout.modules)
    assert len({bank.name for bank in layout.banks}) == len(layout.banks)
    for bank in layout.banks:
        assert all(modules[name] == bank.shape for name in bank.modules)


def test_patterns_groups_templates_and_sets():
    layout = plan_layout(BLOCKS, patterns=["blocks.*.mlp.fc1"], groups=4, templates=1, sets=3)
    assert [len(bank.modules) for bank in layout.banks] == [3, 3, 3, 3]
    assert set(layout.modules) == {f"blocks.{i}.mlp.fc1" for i in range(12)}
    assert layout.coefficients == 12 * 1 * 3
    assert [bank.group for bank in layout.banks] == [1, 2, 3, 4]


def test_groups_alone_apply_to_fused_attention():
    layout = plan_layout(BLOCKS, groups=1)
    assert layout.banks[0].modules == tuple(f"blocks.{i}.attn.qkv" for i in range(12))
    assert layout.banks[0].templates == 12
    assert layout.sets == 1  # 144 are over the budget already


def test_too_many_layers_keep_the_deepest():
    layout = plan_layout({f"blocks.{i}.fc": (4, 4) for i in range(60)})
    assert layout.modules == tuple(f"blocks.{i}.fc" for i in range(11, 60))


def test_no_two_alike_gives_the_largest_one_scalar_each():
    modules = {f"layer{chr(97 + i)}": (i + 1, 2) for i in range(8)}
    layout = plan_layout(modules, budget=3)
    assert set(layout.modules) == {"layerf", "layerg", "layerh"}
    assert layout.coefficients == 3


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"groups": 0}, "groups 0"),
        ({"templates": 0}, "templates 0"),
        ({"sets": -1}, "sets -1"),
        ({"budget": 0}, "budget 0"),
        ({"groups": 13}, "groups 13 is more than the 12"),
        ({"templates": 3}, "templates 3 is more than the 2 layers"),
        ({"patterns": ["blocks.*.attn.q"]}, "patterns 'blocks.*' matches no module"),
        ({"layout": "paper-attention", "sets": 2}, "fixes"),
        ({"layout": "paper"}, "layout paper is unknown"),
    ],
)
def test_impossible_choices_are_refused(choice, message):
    with pytest.raises(RecastError, match=message):
        plan_layout(BLOCKS, **choice)


def test_nothing_to_rewrite():
    with pytest.raises(RecastError, match="nothing to rewrite"):
        plan_layout({})
