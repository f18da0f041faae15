"""Groups of layers: g = ceil(l*G/L) for l = 1..L."""

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from recast_cli.engine.layout.families import depth_order, find_families, role_of, split_groups

depths = st.integers(1, 200).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers)))


@given(depths)
def test_every_layer_is_in_the_group_of_the_formula(depth):
    layers, groups = depth
    found = split_groups([str(layer) for layer in range(1, layers + 1)], groups)
    for layer in range(1, layers + 1):
        group = math.ceil(Fraction(layer * groups, layers))
        assert str(layer) in found[group - 1]
    assert sum(len(names) for names in found) == layers


@given(depths)
def test_sizes_differ_by_at_most_one_and_order_stays(depth):
    layers, groups = depth
    names = [f"blocks.{layer}.attn.qkv" for layer in range(layers)]
    found = split_groups(names, groups)
    sizes = [len(members) for members in found]
    assert len(found) == groups
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert [name for members in found for name in members] == names


def test_groups_of_the_paper():
    assert [len(names) for names in split_groups([str(i) for i in range(12)], 6)] == [2] * 6
    # the remainder goes where the formula puts it, not to the first or last group: ceil(l*3/7) = 1 1 2 2 3 3 3
    assert split_groups(list("abcdefg"), 3) == [("a", "b"), ("c", "d"), ("e", "f", "g")]


def test_depth_orders_numbers_by_value():
    names = ["blocks.10.fc", "blocks.2.fc", "blocks.1.fc", "layer2.0.conv1", "layer10.0.conv1"]
    assert sorted(names, key=depth_order) == [
        "blocks.1.fc",
        "blocks.2.fc",
        "blocks.10.fc",
        "layer2.0.conv1",
        "layer10.0.conv1",
    ]


def test_a_family_is_one_role_and_one_shape():
    modules = {f"blocks.{i}.fc": (4, 4) for i in (10, 2, 1)} | {"blocks.3.fc": (4, 8), "blocks.1.other": (4, 4)}
    assert role_of("layer1.3.conv1") == "layer1.*.conv1"
    assert {(f.role, f.shape, f.modules) for f in find_families(modules)} == {
        ("blocks.*.fc", (4, 4), ("blocks.1.fc", "blocks.2.fc", "blocks.10.fc")),
        ("blocks.*.fc", (4, 8), ("blocks.3.fc",)),
        ("blocks.*.other", (4, 4), ("blocks.1.other",)),
    }
