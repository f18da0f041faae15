"""The layout the tool picks for one network of every family in timm, on the meta device: shapes without weights."""

import pytest
import timm
import torch

from recast_cli.engine.architecture.modules import find_modules
from recast_cli.engine.layout.plan import plan_layout

SMALL = ("test_", "atto", "femto", "pico", "nano", "micro", "_xxs", "_xs", "mini", "tiny", "_ti", "small", "_s", "_b0")


def smallest(names):
    """The name that sounds smallest, else the shortest."""
    return min(names, key=lambda name: (next((i for i, word in enumerate(SMALL) if word in name), 99), len(name), name))


FAMILIES = [family for family in timm.list_modules() if timm.list_models(module=family)]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_default_layout(family):
    name = smallest(timm.list_models(module=family))
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception as error:
        pytest.skip(f"timm cannot make {name} on the meta device: {error}")
    weights = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    layout = plan_layout(find_modules(model))
    assert 1 <= layout.coefficients <= 49
    assert all(bank.exact for bank in layout.banks)
    assert len(layout.modules) == len(set(layout.modules)) >= 1
    for bank in layout.banks:
        for module in bank.modules:
            assert isinstance(model.get_submodule(module), (torch.nn.Linear, torch.nn.modules.conv._ConvNd))
            assert weights[f"{module}.weight"] == bank.shape
    heads = model.pretrained_cfg.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        assert not any(module == head or module.startswith(f"{head}.") for module in layout.modules)


def test_no_family_is_left_out():
    assert len(FAMILIES) > 60
    assert {"vision_transformer", "resnet", "convnext", "swin_transformer", "mlp_mixer"} <= set(FAMILIES)
