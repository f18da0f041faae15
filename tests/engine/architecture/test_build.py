"""A network is built without random numbers for weights that are loaded next, and is the one that timm builds."""

import pytest
import timm
import torch
from helpers import CONV_ARGS, VIT_ARGS

from recast_cli.engine.architecture.build import build
from recast_cli.engine.source.source import from_model

NETWORKS = {
    "vit_tiny_patch16_224": VIT_ARGS,
    "resnet18": CONV_ARGS,
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 3)},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 12, 16)},
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_built_network_is_timms(name):
    args = {"num_classes": 5} | NETWORKS[name]
    torch.manual_seed(0)
    theirs = timm.create_model(name, **args).eval()
    architecture = from_model(name, theirs, args).architecture
    before = torch.get_rng_state()
    ours = build(architecture, theirs.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    for kind in ("named_parameters", "named_buffers"):  # of buffers those that no file holds, too
        mine, yours = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert mine.keys() == yours.keys()
        assert all(torch.equal(mine[key], yours[key]) for key in yours)
    size = args.get("img_size", 32)
    images = torch.randn(2, 3, size, size)
    assert torch.equal(ours(images), theirs(images))


def test_a_network_of_another_image_size_draws_nothing_either():
    theirs = timm.create_model("vit_tiny_patch16_224", **VIT_ARGS).eval()
    architecture = from_model("vit_tiny_patch16_224", theirs, VIT_ARGS).architecture
    before = torch.get_rng_state()
    ours = build(architecture, theirs.state_dict(), 48)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(ours.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
    assert ours.pos_embed.shape[1] == 1 + 6 * 6
    assert ours.pos_embed.std() > 0
