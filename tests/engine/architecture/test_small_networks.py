"""Every kind of network that timm keeps for its own tests, from source to merged weights."""

import pytest
import timm
import torch
from helpers import network, perturbed, random_images

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import attach, merge
from recast_cli.engine.source.source import from_model

pytestmark = pytest.mark.slow

NAMES = timm.list_models("test_*")


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_from_source_to_merged_network(name):
    model = network(name, {"num_classes": 3})
    source = from_model(name, model, {})
    base = mimic(source, plan_layout(source.modules))
    images = random_images(2, 160)
    expected = model(images)
    torch.testing.assert_close(merge(base)(images), expected, rtol=0, atol=0)
    vector = perturbed(base)
    attached, merged = attach(base, vector), merge(base, vector)
    scale = float(expected.abs().max())
    torch.testing.assert_close(merged(images), attached(images), rtol=1e-4, atol=1e-5 * scale)
    assert not torch.allclose(merged(images), expected, rtol=1e-4, atol=1e-5 * scale)
    assert features(merged, images).shape == (2, model.head_hidden_size)


def test_there_are_such_networks():
    assert len(NAMES) > 5
