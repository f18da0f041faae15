"""Switching a loaded base from task to task against networks that are merged afresh."""

import copy
import dataclasses

import pytest
import torch
from helpers import VIT_ARGS, network, perturbed, random_images

import recast_cli.engine.model.switcher as switch_module
from recast_cli.engine.architecture.build import create
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.source.source import from_model


def base_of(source, **choices):
    return mimic(source, plan_layout(source.modules, **choices))


BASES = {
    "pairs of layers": lambda request: request.getfixturevalue("vit_base"),
    "one scalar a module": lambda request: base_of(request.getfixturevalue("vit_source"), templates=1, groups=12),
    "banks of several shapes": lambda request: base_of(request.getfixturevalue("vit_source"), layout="paper-both"),
    "layers that share a template": lambda request: base_of(
        request.getfixturevalue("vit_source"), groups=5, templates=2, sets=3
    ),
    "convolutions": lambda request: base_of(request.getfixturevalue("conv_source"), layout="paper-resnet"),
}


@pytest.fixture(params=BASES)
def base(request):
    return BASES[request.param](request)


def same(model, other, exactly=True):
    """Names, values and flags of everything in two networks are the same."""
    mine, yours = model.state_dict(), other.state_dict()
    assert mine.keys() == yours.keys()
    for name, tensor in mine.items():
        if exactly:
            assert torch.equal(tensor, yours[name]), name
        else:
            torch.testing.assert_close(tensor, yours[name], rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in other.parameters()]
    assert model.training is other.training is False


@pytest.mark.slow
def test_every_switch_gives_the_merged_network(base):
    switcher = Switcher(base, "cpu")
    for seed in (0, 1, 0):
        vector = perturbed(base, seed=seed)
        same(switcher.switch(vector), merge(base, vector), exactly=False)


def test_switching_back_gives_the_mimicked_weights_to_the_bit(base):
    switcher = Switcher(base, "cpu")
    for seed in range(3):
        switcher.switch(perturbed(base, seed=seed))
        same(switcher.switch(base.vector), merge(base))


def test_the_exact_base_gives_the_source_itself(vit_source, vit_base):
    switcher = Switcher(vit_base, "cpu")
    switcher.switch(perturbed(vit_base))
    model = create(vit_base.known_architecture())
    model.requires_grad_(False).load_state_dict(dict(vit_source.tensors))
    same(switcher.switch(vit_base.vector), model)


def test_the_network_is_one_and_the_same_and_a_copy_keeps_its_task(vit_base):
    switcher, one, other = Switcher(vit_base, "cpu"), perturbed(vit_base), perturbed(vit_base, seed=1)
    model = switcher.switch(one)
    kept = copy.deepcopy(model)
    places = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert switcher.switch(other) is model
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places
    same(kept, merge(vit_base, one), exactly=False)


def test_networks_of_two_image_sizes_hold_the_same_task(vit_base):
    switcher, vector = Switcher(vit_base, "cpu"), perturbed(vit_base)
    own = switcher.switch(vit_base.vector)
    large = switcher.switch(vector, 48)
    assert large is not own
    assert switcher.switch(vector) is own
    for model, size in ((own, None), (large, 48)):
        same(model, merge(vit_base, vector, size), exactly=False)
        images = random_images(size=size or 32)
        torch.testing.assert_close(model(images), merge(vit_base, vector, size)(images))


@pytest.mark.slow
@pytest.mark.parametrize("shortest", [1, 10**9], ids=["sizes together", "sizes apart"])
@pytest.mark.parametrize("model", ["vit_source", "conv_source"])
def test_banks_of_several_sizes_in_one_stack_or_in_one_each(model, shortest, monkeypatch, request):
    monkeypatch.setattr(switch_module, "SHORTEST", shortest)
    source = request.getfixturevalue(model)
    base = mimic(source, plan_layout(source.modules))
    sizes = {bank.numel for bank in base.layout.banks}
    switcher = Switcher(base, "cpu")
    assert len(sizes) > 1
    assert len(switcher.stacks) == (1 if shortest == 1 else len(sizes))
    for seed in (0, 1):
        vector = perturbed(base, seed=seed)
        same(switcher.switch(vector), merge(base, vector), exactly=False)
    same(switcher.switch(base.vector), merge(base))


def test_templates_stored_in_fewer_bits(vit_source):
    base = mimic(vit_source, plan_layout(vit_source.modules), dtype="bfloat16")
    vector = perturbed(base)
    model = Switcher(base, "cpu").switch(vector)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    same(model, merge(base, vector), exactly=False)


def test_weights_that_a_source_shares():
    model = network()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    source = from_model("tied", model, VIT_ARGS)
    base = mimic(source, plan_layout(source.modules))
    assert base.aliases
    vector = perturbed(base)
    same(Switcher(base, "cpu").switch(vector), merge(base, vector), exactly=False)


def test_gradients_and_autocast_leave_switching_alone(vit_base):
    vector = perturbed(vit_base)
    with torch.autocast("cpu", torch.bfloat16):
        model = Switcher(vit_base, "cpu").switch(vector.clone().requires_grad_())
    same(model, merge(vit_base, vector), exactly=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_vector_in_another_precision(vit_base):
    vector = perturbed(vit_base).double()
    same(Switcher(vit_base, "cpu").switch(vector), merge(vit_base, vector.float()), exactly=False)


def test_a_vector_of_another_length_is_refused_and_changes_nothing(vit_base):
    switcher, vector = Switcher(vit_base, "cpu"), perturbed(vit_base)
    model = switcher.switch(vector)
    for wrong in (vector[:-1], torch.cat([vector, vector]), vector[None]):
        with pytest.raises(RecastError, match=r"the base wants \(48,\)"):
            switcher.switch(wrong)
    same(model, merge(vit_base, vector), exactly=False)


def test_what_no_network_can_be_built_of(vit_base):
    with pytest.raises(RecastError, match="no known architecture"):
        Switcher(dataclasses.replace(vit_base, architecture=None))
    with pytest.raises(RecastError, match="device nothing"):
        Switcher(vit_base, "nothing")
    with pytest.raises(RecastError, match="does not take images of 4 px"):
        Switcher(vit_base, "cpu").switch(vit_base.vector, 4)
