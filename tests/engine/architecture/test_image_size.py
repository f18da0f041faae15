"""Networks at another image size than their own, against timm's own resampling."""

import pytest
import timm
import torch
from helpers import CONV, CONV_ARGS, VIT, VIT_ARGS, network, perturbed, random_images, save_folder
from safetensors.torch import save_file

from recast_cli.engine.architecture.build import build
from recast_cli.engine.architecture.timm_config import describe
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import attach, merge
from recast_cli.engine.source.open import open_source


def timm_at(name, args, state, size, folder):
    """The network as timm itself loads it from a file at another size."""
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "weights.safetensors")
    overlay = {"file": str(folder / "weights.safetensors"), "num_classes": args["num_classes"], "custom_load": False}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**args, "img_size": size}).eval()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size", [16, 48, 64])
def test_position_embeddings_are_resampled_as_timm_does(size, vit_base, tmp_path):
    vector, images = perturbed(vit_base), random_images(2, size)
    expected = timm_at(VIT, VIT_ARGS, vit_base.state(vector), size, tmp_path)(images)
    torch.testing.assert_close(merge(vit_base, vector, size)(images), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(attach(vit_base, vector, size)(images), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_config_that_names_its_own_loader_does_not_get_in_the_way(vit_base, tmp_path):
    model = timm.create_model(VIT, **VIT_ARGS, pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    architecture = describe(model, VIT_ARGS)
    assert architecture.config["custom_load"]
    images = random_images(2, 48)
    expected = timm_at(VIT, VIT_ARGS, vit_base.state(), 48, tmp_path)(images)
    torch.testing.assert_close(build(architecture, vit_base.state(), 48)(images), expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 64])
def test_convolutions_take_any_size(size, conv_source, conv_base):
    plain = timm.create_model(CONV, **CONV_ARGS).eval()
    plain.load_state_dict(conv_source.tensors)
    images = random_images(2, size)
    torch.testing.assert_close(merge(conv_base, image_size=size)(images), plain(images), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("mixer_s16_224", {"img_size": 32, "mlp_ratio": [0.1, 0.1], "num_classes": 3}),
        ("gmlp_ti16_224", {"img_size": 32, "num_classes": 3}),
    ],
)
def test_networks_whose_weights_fix_the_size_are_refused(name, args, tmp_path):
    source = open_source(str(save_folder(tmp_path / "fixed", name, args)))
    base = mimic(source, plan_layout(source.modules))
    assert merge(base)(random_images()).shape == (2, 3)
    for make in (merge, attach):
        with pytest.raises(RecastError, match="fix the image size"):
            make(base, None, 48)


def test_a_size_at_which_the_network_cannot_run_is_refused():
    model = network("edgenext_xx_small", {"num_classes": 3})
    architecture = describe(model, {})
    assert build(architecture, model.state_dict(), 64)(random_images(2, 64)).shape == (2, 3)
    with pytest.raises(RecastError, match="does not take images of 8 px"):
        build(architecture, model.state_dict(), 8)
