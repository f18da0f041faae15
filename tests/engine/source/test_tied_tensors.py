"""Tensors that a network has under several names: stored once, and given back under all of them."""

import json

import pytest
import torch
from helpers import network
from safetensors.torch import save_file, save_model

from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.source.open import open_source
from recast_cli.engine.source.source import from_model

pytestmark = pytest.mark.slow


def test_tied_tensors_of_a_network_are_stored_once(tmp_path):
    model = network("coat_tiny", {})
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "coat.safetensors")
    source = open_source("coat.safetensors", "coat_tiny")
    assert source.aliases == from_model("coat", model, {}).aliases != {}
    assert not source.aliases.keys() & source.tensors.keys()
    base = mimic(source, plan_layout(source.modules), path=tmp_path / "base")
    found = base.state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def without_ties(model, folder, keep):
    """The weights of a network as files that hold each tensor under one name, and a timm folder of them."""
    names = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    state = model.state_dict()
    once = {keep(tied): state[keep(tied)].clone() for tied in names.values()}
    assert once.keys() < state.keys()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "coat_tiny"}))
    save_file(once, folder / "model.safetensors")
    torch.save(once, folder / "coat.pth")
    return state


@pytest.mark.parametrize("keep", [min, max], ids=["one name", "the other"])
@pytest.mark.parametrize("file", ["model.safetensors", "coat.pth", ""])
def test_a_file_may_have_one_name_of_tied_tensors(tmp_path, file, keep):
    model = network("coat_tiny", {})
    state = without_ties(model, tmp_path / "coat", keep)
    source = open_source(str(tmp_path / "coat" / file), "coat_tiny" if file else None)
    assert source.aliases == from_model("coat", model, {}).aliases
    found = mimic(source, plan_layout(source.modules)).state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_what_safetensors_own_save_model_wrote(tmp_path):
    model = network("coat_tiny", {})
    save_model(model, str(tmp_path / "coat.safetensors"))
    assert open_source("coat.safetensors", "coat_tiny").aliases == from_model("coat", model, {}).aliases


def test_a_tied_tensor_without_any_of_its_names_is_missed(tmp_path):
    model = network("coat_tiny", {})
    tied = ["cpe1.proj.weight", "serial_blocks1.0.cpe.proj.weight", "serial_blocks1.1.cpe.proj.weight"]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, tmp_path / "coat.safetensors")
    with pytest.raises(RecastError, match=r"lacks cpe1\.proj\.weight and 2 more"):
        open_source("coat.safetensors", "coat_tiny")
