"""The dictionary of entries that a task may choose from, and places that are not in it."""

import pytest
import torch

from recast_cli.engine.base.chosen import add_entries, check_places, dictionary, read_dictionary, spend, spread
from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.model.attach import merge

ENTRIES = {"a.bias": 3, "b.weight": 2}


def test_it_has_the_vectors_of_the_network_but_the_classifiers(vit_base):
    wanted = {
        name: parameter.numel()
        for name, parameter in merge(vit_base).named_parameters()
        if parameter.ndim == 1 and not name.startswith("head.")
    }
    assert vit_base.entries == wanted
    assert [*vit_base.entries] == sorted(wanted)


def test_statistics_of_batch_norm_are_no_coefficients(conv_base):
    names = [name for name, parameter in merge(conv_base).named_parameters() if parameter.ndim == 1]
    assert {*conv_base.entries} == {name for name in names if not name.startswith("fc.")}


def test_without_an_architecture_every_vector_is_in_it():
    assert dictionary({"b": (2,), "a": (3,), "w": (3, 2)}, None) == {"a": 3, "b": 2}


@pytest.mark.parametrize("kind", ["vit_base", "conv_base"])
def test_a_file_says_the_same_without_its_tensors(kind, request, tmp_path):
    base = save_base(request.getfixturevalue(kind), tmp_path / "base.safetensors")
    assert [*read_dictionary(base.path, base.architecture).items()] == [*base.entries.items()]
    assert load_base(base.path).entries == base.entries


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([[2, 0]], "a place in vector 2, the base has 2"),
        ([[-1, 0]], "a place in vector -1"),
        ([[0, 3]], r"entry 3, and a\.bias has 3 entries"),
        ([[0, -1]], "entry -1"),
        ([[0, 1], [1, 1], [0, 1]], r"entry 1 of a\.bias twice"),
    ],
)
def test_a_place_that_is_not_there_is_refused(places, said):
    with pytest.raises(RecastError, match=said):
        check_places(places, ENTRIES, "the task")


def test_places_that_are_there_are_not():
    check_places([[0, 2], [1, 0], [0, 0], [1, 1]], ENTRIES, "the task")
    check_places([], ENTRIES, "the task")


def test_values_are_added_where_they_belong():
    state = {"a.bias": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16), "b.weight": torch.tensor([5.0, 6.0])}
    places, values = torch.tensor([[0, 2], [0, 0]], dtype=torch.int32), torch.tensor([0.5, -4.0])
    changed = add_entries(state, [*ENTRIES], places, values)
    assert {name: vector.tolist() for name, vector in changed.items()} == {"a.bias": [-3.0, 2.0, 3.5]}
    assert changed["a.bias"].dtype == torch.float32


@pytest.mark.parametrize(
    ("numbers", "budget"), [(47, (0, 23)), (48, (24, 12)), (95, (24, 35)), (96, (48, 24)), (1000, (48, 476))]
)
def test_a_budget_is_spent_on_the_layout_where_as_much_is_left_for_entries(numbers, budget, scaled_base, vit_base):
    assert spend(numbers, scaled_base.layout) == budget
    assert spend(numbers, scaled_base.layout, of_layout=False) == (0, numbers // 2)
    assert spend(95, vit_base.layout) == (0, 47)  # twelve modules of four coefficients each share none


def test_neighbours_share_what_is_added_to_the_layout(scaled_base):
    added = torch.arange(26.0)
    moved, entries = scaled_base.split(added, torch.tensor([[0, 0], [0, 1]], dtype=torch.int32))
    assert torch.equal(moved - scaled_base.vector, torch.arange(24.0).repeat_interleave(2))
    assert entries.tolist() == [24, 25]
    assert spread([1.0, 2.0], 4) == [1, 1, 2, 2]
    assert spread([], 3) == [0, 0, 0]


def test_a_vector_without_its_places_is_refused(scaled_base):
    with pytest.raises(RecastError, match=r"The vector has shape \(36,\), the base wants \(48,\)"):
        merge(scaled_base, torch.zeros(36))
