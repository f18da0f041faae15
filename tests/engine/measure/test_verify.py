"""How well a base stands in for its source."""

import shutil

import pytest
import torch
from helpers import VIT, VIT_ARGS, save_folder
from torch.nn import functional as F

from recast_cli.engine.architecture.build import build
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.folders import list_classes, list_items
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.verify import verify
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import merge
from recast_cli.engine.source.open import open_source


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_an_exact_base_agrees_in_everything(kind, request, data):
    source, base = request.getfixturevalue(f"{kind}_source"), request.getfixturevalue(f"{kind}_base")
    found = verify(source, base, data, device="cpu")
    assert found.images == 36
    assert found.agreement == 1.0
    assert found.feature_cosine == pytest.approx({module: 1.0 for module in base.layout.modules})


@torch.no_grad()
def test_a_lossy_base_is_measured_as_it_is(vit_source, data):
    patterns = ["blocks.*.attn.*", "blocks.*.mlp.*"]
    base = mimic(vit_source, plan_layout(vit_source.modules, patterns=patterns, groups=1, templates=1))
    found = verify(vit_source, base, data, device="cpu")
    config = base.known_architecture().preprocessing
    names = list_classes(data)
    images = normalise(decode(data, list_items(data, "", names, names), config).pixels, config)
    models = build(base.known_architecture(), vit_source.tensors), merge(base)
    agreement = (models[0](images).argmax(1) == models[1](images).argmax(1)).double().mean()
    assert agreement < 1
    assert found.agreement == pytest.approx(float(agreement))
    outputs = {}
    for model in models:
        model.blocks[7].attn.qkv.register_forward_hook(
            lambda m, i, output, model=model: outputs.update({model: output})
        )
        model(images)
    first, second = (outputs[model].flatten(1) for model in models)
    expected = float(F.cosine_similarity(first, second, dim=1).mean())
    assert expected < 0.999
    assert found.feature_cosine["blocks.7.attn.qkv"] == pytest.approx(expected, abs=1e-5)


def test_a_source_without_classifier_has_no_agreement(tmp_path, data):
    source = open_source(str(save_folder(tmp_path / "m", VIT, VIT_ARGS | {"num_classes": 0})))
    found = verify(source, mimic(source, plan_layout(source.modules)), data, device="cpu")
    assert found.agreement is None
    assert list(found.feature_cosine.values()) == pytest.approx([1.0] * 48)


def test_images_without_classes_will_do(vit_source, data, tmp_path):
    base = mimic(vit_source, plan_layout(vit_source.modules))
    (tmp_path / "flat").mkdir()
    for number, file in enumerate(sorted(data.rglob("*.png"))):
        shutil.copy(file, tmp_path / "flat" / f"{number}.png")
    found, wanted = (verify(vit_source, base, folder, device="cpu") for folder in (tmp_path / "flat", data))
    assert found.images >= wanted.images
    assert found.agreement == 1
