"""Mixtures in a live network, and the plain network that is merged from them."""

import copy

import pytest
import torch
from helpers import perturbed, random_images
from torch import nn

from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import attach, coefficient_parameters, merge


@pytest.fixture(params=["vit", "conv"])
def base(request):
    return request.getfixturevalue(f"{request.param}_base")


@torch.no_grad()
def test_merged_and_attached_give_the_same_logits(base):
    vector, images = perturbed(base), random_images(3)
    attached, merged, source = attach(base, vector)(images), merge(base, vector)(images), merge(base)(images)
    torch.testing.assert_close(merged, attached, atol=1e-5, rtol=1e-5)
    assert (merged - source).abs().max() > 1e-2  # the coefficients that were moved do matter
    torch.testing.assert_close(attach(base)(images), source, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_bases_too(dtype, vit_source, vit_base):
    half, images = mimic(vit_source, vit_base.layout, dtype=dtype), random_images()
    vector = perturbed(half)
    attached, merged = attach(half, vector)(images), merge(half, vector)(images)
    assert attached.dtype == merged.dtype == torch.float32
    torch.testing.assert_close(merged, attached, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged, merge(vit_base, vector)(images), atol=0.3, rtol=0.05)


def test_only_the_coefficients_learn(base):
    model = attach(base)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {f"{module}.parametrizations.weight.original" for module in base.layout.modules}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == base.layout.coefficients
    model(random_images()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in coefficient_parameters(model, base))
    assert not any(module.training for module in model.modules())


def test_modules_of_a_bank_share_their_templates_in_memory(base):
    model = attach(base)
    for moved in (model, copy.deepcopy(model).double()):
        places = set()
        for bank in base.layout.banks:
            here = {
                moved.get_submodule(module).parametrizations.weight[0].templates.tensor.data_ptr()
                for module in bank.modules
            }
            assert len(here) == 1
            places |= here
        assert len(places) == len(base.layout.banks)


def test_coefficients_come_back_in_layout_order(base):
    vector = perturbed(base)
    model = attach(base, vector)
    learned = [each.reshape(-1) for each in coefficient_parameters(model, base)]
    assert torch.equal(torch.cat(learned), vector)
    assert [tuple(p.shape) for p in coefficient_parameters(model, base)] == [
        shape for _, shape in base.layout.slices().values()
    ]


def test_attaching_copies_the_vector(vit_base):
    vector = vit_base.vector.clone()
    model = attach(vit_base, vector)
    with torch.no_grad():
        coefficient_parameters(model, vit_base)[0].add_(1)
    assert torch.equal(vector, vit_base.vector)
    assert torch.equal(vit_base.state()["blocks.0.attn.qkv.weight"], merge(vit_base).blocks[0].attn.qkv.weight)


def test_weights_are_mixed_in_full_precision_under_autocast(vit_base):
    model = attach(vit_base, perturbed(vit_base))
    module = model.get_submodule("blocks.5.attn.qkv")
    plain = module.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.weight, plain)
        assert module.weight.dtype == torch.float32


def test_nothing_of_recast_is_left_in_a_merged_network(base):
    model = merge(base)
    assert not any(nn.utils.parametrize.is_parametrized(module) for module in model.modules())
    assert model.state_dict().keys() == base.state().keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())
