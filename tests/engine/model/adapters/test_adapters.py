"""What holds for every adapter: where it fits, how it starts, what it learns, and that merging gives the same."""

import copy

import numpy as np
import pytest
import timm
import torch
from fixtures.adapters import GIVEN, MODULE, close, put_into, weight
from helpers import perturbed, random_images

from recast_cli.engine.errors import RecastError
from recast_cli.engine.model.adapters.adapter import ADAPTERS, PACKING, Adapter, Installed, add_learned
from recast_cli.engine.model.attach import attach, merge
from recast_cli.engine.task import options

pytest_plugins = ["fixtures.adapters"]

VIT = ("melo", "adaptformer", "dora", "rosa", "rosa-mlp")
CONV = ("piggyback", "clr")


def base_of(name, vit_base, conv_base):
    return vit_base if name in VIT else conv_base


def test_the_names_are_those_of_the_options():
    assert ADAPTERS.keys() == options.ADAPTERS.keys()
    assert PACKING.keys() <= ADAPTERS.keys()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_at_the_start_nothing_is_changed(name, vit_base, conv_base, joined):
    base = base_of(name, vit_base, conv_base)
    model = (attach if joined else merge)(base, perturbed(base))
    before = torch.get_rng_state()
    Installed(model, name, GIVEN)
    assert torch.equal(torch.get_rng_state(), before)
    images = random_images(3)
    torch.testing.assert_close(model(images), merge(base, perturbed(base))(images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_gives_the_logits_of_the_attached_network(name, vit_base, conv_base, joined):
    base = base_of(name, vit_base, conv_base)
    model, installed = put_into(base, name, joined, moved=0.05)
    adapter = installed.learned([value.detach() for value in installed.parameters.values()])
    merged, images = merge(base, perturbed(base), adapter=adapter), random_images(3)
    wanted = model(images)
    torch.testing.assert_close(merged(images), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - merge(base, perturbed(base))(images)).abs().max() > 1e-3  # what was learned does matter
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert any("parametrizations" in key for key in merged.state_dict()) is False
    beside = {"adaptformer", "clr"}
    assert (merged.state_dict().keys() == merge(base).state_dict().keys()) == (name not in beside)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_reach_every_parameter(name, dtype, vit_base, conv_base, joined):
    base = base_of(name, vit_base, conv_base)
    # a narrow bottleneck may be dead: below 0 for every token, as may happen with ReLU
    model, installed = put_into(base, name, joined, moved=0.05, rank=16)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        found = model(random_images())
    found.float().square().mean().backward()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(learning) == len(installed.parameters) + joined * len(base.layout.modules)
    for parameter in learning:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["melo", "adaptformer", "dora", "rosa"])
def test_equal_seeds_draw_equal_values_and_disturb_no_others(name, vit_base):
    model = merge(vit_base)

    def start(seed):
        return list(Installed(copy.deepcopy(model), name, {"seed": seed}).parameters.values())

    state = torch.get_rng_state()

    first, again, other = start(1), start(1), start(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_network_of_the_other_kind_is_refused(name, vit_base, conv_base):
    other = conv_base if name in VIT else vit_base
    with pytest.raises(RecastError, match=f"The adapter {name} needs") as caught:
        Installed(merge(other), name, {})
    known = CONV if name in VIT else VIT
    assert all(each in str(caught.value.hint) for each in known)


def test_sparse_places_are_those_of_the_largest_gradients(vit_base):
    _, installed = put_into(vit_base, "rosa", False)
    generator = torch.Generator().manual_seed(0)
    scores = {}

    def importance(names):
        for name in names:
            scores[name] = torch.rand(96 if "qkv" in name else 32, 32, generator=generator)
        return scores

    installed.choose(importance)
    for name, score in scores.items():
        found = installed.fixed[f"{name}.sparse.places"].long()
        assert set(found.tolist()) == set(np.argsort(score.numpy().ravel())[::-1][: len(found)].tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "missing or too many"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "missing or too many"),
        (lambda tensors: tensors.update({f"{MODULE}.a": torch.zeros(3)}), r"has shape \(3,\) instead of"),
    ],
)
def test_another_network_s_tensors_are_refused(change, message, vit_base):
    _, installed = put_into(vit_base, "melo", False)
    adapter = installed.learned(list(installed.parameters.values()))
    change(adapter.tensors)
    with pytest.raises(RecastError, match=message):
        add_learned(merge(vit_base), Adapter("melo", adapter.options, adapter.tensors))


def architecture(name, **args):
    return timm.create_model(name, num_classes=5, **args).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "efficientformer_l1"])
def test_rows_that_go_by_heads_are_not_taken_for_queries(name):
    with pytest.raises(RecastError, match="needs attention with queries, keys and values"):
        Installed(architecture(name), "melo", {})


def test_attention_that_takes_its_queries_elsewhere_has_none_here():
    places = Installed(architecture("gcvit_xxtiny"), "melo", {}).pieces
    assert places
    assert not any(".blocks.1." in place for place in places)  # every second block is a global one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poolformer_s12", "focalnet_tiny_srf", "convformer_s18"])
def test_branches_beside_mlps_want_channels_at_the_end(name):
    with pytest.raises(RecastError, match="The adapter adaptformer needs"):
        Installed(architecture(name), "adaptformer", {})


def test_a_classifier_that_is_a_convolution_gets_no_ghost():
    places = Installed(architecture("dla34"), "clr", {}).parameters
    assert places
    assert not any(place.startswith("fc.") for place in places)


def test_rows_of_zeros_stay_finite(vit_base):
    model = merge(vit_base)
    with torch.no_grad():
        model.get_submodule(MODULE).weight[5] = 0
    installed = Installed(model, "dora", {})
    model(random_images(2)).square().sum().backward()
    assert all(value.grad.isfinite().all() for value in installed.parameters.values())
    close(weight(model, MODULE)[5], 0)
