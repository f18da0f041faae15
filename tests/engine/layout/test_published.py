"""The layouts of the paper on the real networks, whose shapes come from timm on the meta device."""

import pytest
import timm
import torch

from recast_cli.engine.architecture.modules import find_modules
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout


def modules_of(name):
    with torch.device("meta"):
        return find_modules(timm.create_model(name))


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch16_224", "vit_small_patch16_224.dino"])
def test_attention_of_twelve_blocks(name):
    layout = plan_layout(modules_of(name), layout="paper-attention")
    assert layout.modules == tuple(f"blocks.{number}.attn.qkv" for number in range(12))
    assert [bank.modules for bank in layout.banks] == [
        (f"blocks.{2 * g}.attn.qkv", f"blocks.{2 * g + 1}.attn.qkv") for g in range(6)
    ]
    assert (layout.groups, layout.templates, layout.sets) == (6, 2, 2)
    assert (layout.coefficients, layout.degrees_of_freedom) == (48, 24)
    assert all(bank.exact for bank in layout.banks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("vit_small_patch16_224", ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        ("vit_small_patch16_224.dino", ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        ("vit_large_patch16_224", ("attn.qkv", "mlp.fc2")),  # all four would be 96
    ],
)
def test_the_default_is_one_coefficient_a_module(name, roles):
    layout = plan_layout(modules_of(name))
    depth = 48 // len(roles)
    assert set(layout.modules) == {f"blocks.{number}.{role}" for number in range(depth) for role in roles}
    assert (layout.templates, layout.sets) == (1, 1)
    assert (layout.coefficients, layout.degrees_of_freedom) == (48, 48)
    assert all(bank.exact for bank in layout.banks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "coefficients", "modules"),
    [
        ("vit_small_patch16_224", "paper-attention", 48, 12),
        ("vit_small_patch16_224", "paper-mlp", 96, 24),
        ("vit_small_patch16_224", "paper-both", 144, 36),
        ("vit_small_patch16_224.dino", "paper-both", 144, 36),
        ("vit_large_patch16_224", "paper-attention", 96, 24),
        ("resnet34", "paper-resnet", 168, 24),
    ],
)
def test_published_counts(name, layout, coefficients, modules):
    found = plan_layout(modules_of(name), layout=layout)
    assert found.coefficients == coefficients
    assert len(found.modules) == len(set(found.modules)) == modules
    assert found.sets == 2
    assert all(bank.exact for bank in found.banks)


def test_resnet34_shares_within_a_stage_but_not_its_first_block():
    modules = modules_of("resnet34")
    layout = plan_layout(modules, layout="paper-resnet")
    expected = {
        f"layer{stage}.{block}.conv{conv}"
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
        for block in range(1, blocks)
        for conv in (1, 2)
    }
    assert set(layout.modules) == expected
    # every 3x3 weight counted by hand: sum over stages of 2 roles * (blocks - 1) layers * (blocks - 1) templates * K
    assert layout.coefficients == sum(2 * (blocks - 1) ** 2 * 2 for blocks in (3, 4, 6, 3))
    assert all(modules[name] == bank.shape for bank in layout.banks for name in bank.modules)


def test_a_paper_layout_that_does_not_fit_says_what_is_there():
    with pytest.raises(RecastError, match=r"paper-attention.*layer"):
        plan_layout(modules_of("resnet18"), layout="paper-attention")
    with pytest.raises(RecastError, match="paper-mlp"):
        plan_layout(modules_of("resnet18"), layout="paper-ml")
