"""Folders that timm's `local-dir:` opens, as sources."""

import json

import pytest
import timm
import torch
from helpers import MEAN, STD, VIT, random_images, save_folder
from safetensors.torch import load_file, save_file

from recast_cli.engine.errors import RecastError
from recast_cli.engine.model.attach import merge
from recast_cli.engine.source.open import open_source


def test_the_folders_own_arguments_and_data_config_are_kept(vit_folder, vit_source):
    weights = load_file(vit_folder / "model.safetensors")
    assert vit_source.tensors.keys() == weights.keys()
    assert all(torch.equal(vit_source.tensors[name], tensor) for name, tensor in weights.items())
    architecture = vit_source.architecture
    assert architecture.name == VIT
    assert architecture.args == {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 12,
        "num_heads": 2,
        "num_classes": 5,
    }
    preprocessing = architecture.preprocessing
    assert architecture.image_size == preprocessing.input_size[1] == 32
    assert (preprocessing.mean, preprocessing.std) == (tuple(MEAN), tuple(STD))
    assert vit_source.modules["blocks.11.attn.qkv"] == (96, 32)
    assert "head" not in vit_source.modules
    assert vit_source.name == vit_folder.name


@torch.no_grad()
def test_the_network_is_timms_own(vit_folder, vit_base):
    model = timm.create_model(f"local-dir:{vit_folder}", pretrained=True).eval()
    images = random_images()
    assert torch.equal(merge(vit_base)(images), model(images))


def test_the_local_dir_prefix_opens_it_too(vit_folder, vit_source):
    assert open_source(f"local-dir:{vit_folder}").digest == vit_source.digest


def spoil(folder, what):
    config = folder / "config.json"
    if what == "no config":
        config.unlink()
    elif what == "no json":
        config.write_text("{")
    elif what == "no name":
        config.write_text("{}")
    elif what == "unknown name":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"architecture": "vit_tinny_patch16_224"}))
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "cut weights":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-100])
    elif what == "other shape":
        values = json.loads(config.read_text())
        values["model_args"]["embed_dim"] = 64
        config.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "without a config.json"),
        ("no json", "not a timm config"),
        ("no name", "not a timm config"),
        ("unknown name", "Did you mean 'vit_tiny_patch16_224'"),
        ("no weights", "holds no weights"),
        ("cut weights", "truncated"),
        ("other shape", "timm cannot open"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(what, message, tmp_path):
    folder = save_folder(tmp_path / "model")
    spoil(folder, what)
    with pytest.raises(RecastError, match=message):
        open_source(str(folder))


def test_options_for_files_do_not_apply(vit_folder):
    with pytest.raises(RecastError, match="does not apply"):
        open_source(str(vit_folder), architecture=VIT)


def test_a_folder_that_is_called_after_a_network_does_not_hide_it(tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    folder = tmp_path / "test_vit"
    folder.mkdir()  # with other files of that network; tmp_path is the working folder
    source = open_source("test_vit", weights=weights)
    assert source.architecture is not None
    assert source.architecture.name.startswith("test_vit")
    (folder / "config.json").write_text("{}")
    with pytest.raises(RecastError, match="is a folder"):
        open_source("test_vit", weights=weights)
