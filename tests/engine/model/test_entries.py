"""Chosen coefficients in a network: what they compute, their gradients, and switching from task to task."""

import pytest
import torch
from helpers import perturbed, random_images

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.errors import RecastError
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.entries import Entries, vector_of
from recast_cli.engine.model.switcher import Switcher

COUNT = 7
UNITS = torch.rand(COUNT, generator=torch.Generator().manual_seed(7)) + 0.1


def drawn(base, seed=0, count=COUNT):
    """Different places anywhere in the dictionary, several in one vector, and a value for each."""
    generator = torch.Generator().manual_seed(seed)
    every = [(number, entry) for number, size in enumerate(base.entries.values()) for entry in range(size)]
    first = every[: min(2, count)]
    rest = [every[place] for place in (2 + torch.randperm(len(every) - 2, generator=generator)).tolist()]
    places = torch.tensor([*first, *rest][:count], dtype=torch.int32)
    return places, torch.randn(count, generator=generator)


@pytest.fixture(params=["vit_base", "conv_base"])
def base(request):
    return request.getfixturevalue(request.param)


def literally(base, places, values):
    """The merged network, its entries changed one by one."""
    model = merge(base)
    names = [*base.entries]
    with torch.no_grad():
        for (number, entry), value in zip(places.tolist(), values.tolist(), strict=True):
            model.get_parameter(names[number])[entry] += value
    return model


def same(model, other):
    mine, yours = model.state_dict(), other.state_dict()
    assert mine.keys() == yours.keys()
    assert all(torch.equal(tensor, yours[name]) for name, tensor in mine.items())


def test_merging_adds_each_value_to_its_entry(base):
    places, values = drawn(base)
    same(merge(base, values, places=places), literally(base, places, values))


@pytest.mark.slow
def test_without_a_step_the_network_is_what_it_was_and_steps_are_in_units(base):
    places, _ = drawn(base)
    entries, plain = Entries(merge(base), base.entries, COUNT), merge(base)
    entries.choose(places, UNITS)
    images = random_images()
    with torch.no_grad():
        assert torch.equal(features(entries.model, images), features(plain, images))
        entries.steps.copy_(torch.linspace(-2, 2, COUNT))
        names = [*base.entries]
        for step, unit, place in zip(entries.steps.tolist(), UNITS.tolist(), places.tolist(), strict=True):
            vector = vector_of(plain, names[place[0]])
            moved = vector_of(entries.model, names[place[0]])[place[1]] - vector[place[1]]
            assert float(moved) == pytest.approx(unit * step, abs=1e-6)
        merged = merge(base, entries.values(entries.steps), places=entries.places)
        assert torch.equal(features(entries.model, images), features(merged, images))


def test_gradients_are_those_of_the_entries_times_their_units(base):
    places, _ = drawn(base)
    entries, plain = Entries(merge(base), base.entries, COUNT), merge(base)
    entries.choose(places, UNITS)
    images, names = random_images(), [*base.entries]
    (found,) = torch.autograd.grad(features(entries.model, images).square().sum(), [entries.steps])
    vectors = [vector_of(plain, name).requires_grad_() for name in names]
    wanted = torch.autograd.grad(features(plain, images).square().sum(), vectors, materialize_grads=True)
    literal = [unit * wanted[number][entry] for unit, (number, entry) in zip(UNITS, places.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.stack(literal), rtol=1e-4, atol=1e-5)


def test_nothing_else_wants_a_gradient(base):
    entries = Entries(merge(base), base.entries, COUNT)
    entries.choose(drawn(base)[0], UNITS)
    assert [each for each in entries.model.parameters() if each.requires_grad] == [entries.steps]


@pytest.mark.slow
def test_switching_between_tasks_of_both_kinds_leaves_nothing_behind(base):
    switcher = Switcher(base, "cpu")
    one, other, of_layout = drawn(base, 1), drawn(base, 2, 3), perturbed(base)
    for _ in range(2):
        for places, values in (one, other):
            same(switcher.switch(values, places=places), merge(base, values, places=places))
        torch.testing.assert_close(switcher.switch(of_layout).state_dict(), merge(base, of_layout).state_dict())
    same(switcher.switch(base.vector), merge(base))


def test_networks_of_all_sizes_hold_the_same_task(vit_base):
    switcher = Switcher(vit_base, "cpu")
    places, values = drawn(vit_base)
    small = switcher.switch(vit_base.vector, 16)
    large = switcher.switch(values, places=places)
    for name in vit_base.entries:
        assert torch.equal(vector_of(small, name), vector_of(large, name))


def test_a_wrong_place_is_refused_before_anything_is_written(vit_base):
    switcher, wrong = Switcher(vit_base, "cpu"), torch.tensor([[0, 10**6]])
    before = {name: tensor.clone() for name, tensor in switcher.switch(vit_base.vector).state_dict().items()}
    for refuse in (switcher.switch, lambda vector, places: merge(vit_base, vector, places=places)):
        with pytest.raises(RecastError, match="place at entry 1000000"):
            refuse(torch.ones(1), places=wrong)
    after = switcher.networks[switcher.image_size].state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
