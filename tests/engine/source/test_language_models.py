"""Checkpoints of language models: shards in bfloat16 whose architecture nobody here knows, restored exactly."""

import json

import pytest
import torch
from fixtures.cli_helpers import recast, recast_json, refused
from safetensors import safe_open
from safetensors.torch import save_file

from recast_cli.engine.base.file import load_base
from recast_cli.engine.storage.tensors import StoredTensors

WIDTH, LAYERS = 16, 4


def tensors():
    """A small network with the names and types of a common language model."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    found = {"model.embed_tokens.weight": draw(50, WIDTH), "lm_head.weight": draw(50, WIDTH)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{place}self_attn.{name}.weight"] = draw(4 if name in ("k_proj", "v_proj") else WIDTH, WIDTH)
        found[f"{place}mlp.gate_proj.weight"] = draw(3 * WIDTH, WIDTH)
        found[f"{place}mlp.down_proj.weight"] = draw(WIDTH, 3 * WIDTH)
        found[f"{place}input_layernorm.weight"] = torch.ones(WIDTH).bfloat16()
    found["model.layers.0.mlp.down_proj.weight"][0] = -0.0  # adding nothing would make it positive
    return found | {"inv_freq": torch.arange(8.0).double(), "steps": torch.tensor(7), "scale": torch.ones(3).half()}


@pytest.fixture
def folder(tmp_path):
    """Two shards with their index and a config.json that is not timm's."""
    folder, found = tmp_path / "llm", tensors()
    folder.mkdir()
    shards = {name: f"model-{place % 2 + 1:05}-of-00002.safetensors" for place, name in enumerate(found)}
    for file in set(shards.values()):
        part = {name: tensor for name, tensor in found.items() if shards[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    return folder


def content(path):
    """Name -> type, shape and bytes, by safetensors' own reader."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {name: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).tolist()) for name, t in found.items()}


@pytest.mark.parametrize("options", [(), ("--groups", 2), ("--groups", 2, "--dtype", "bfloat16"), ("--budget", 3)])
@pytest.mark.parametrize("source", ["llm", "llm/model.safetensors.index.json"])
def test_it_comes_back_bit_by_bit(source, options, folder):
    save_file(tensors(), "all.safetensors")
    value = recast_json("mimic", source, "-o", "base.safetensors", *options)
    assert (value["architecture"], value["max_relative_error"]) == (None, 0)
    modules = load_base("base.safetensors").layout.modules
    assert all(module.startswith("model.layers.") for module in modules)
    value = recast_json("export", "base.safetensors", "--format", "safetensors", "-o", "out.safetensors")
    assert value["identical"] is True
    assert content("out.safetensors") == content("all.safetensors")
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_fewer_templates_than_layers_are_not_the_source(folder):
    recast("mimic", "llm", "-o", "base.safetensors", "--groups", 1, "--templates", 2)
    value = recast_json("export", "base.safetensors", "--format", "safetensors", "-o", "out.safetensors")
    assert value["identical"] is False
    before, after = tensors(), content("out.safetensors")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in before.items()} == {
        name: entry[:2] for name, entry in after.items()
    }
    shown = recast("export", "base.safetensors", "--format", "safetensors", "-o", "out.safetensors").stdout
    assert "not bit by bit" in shown


def test_no_more_than_a_bank_is_read_at_a_time(folder, monkeypatch):
    """The base is read tensor by tensor from its file, and each tensor once."""
    recast("mimic", "llm", "-o", "base.safetensors")
    read, original = [], StoredTensors.__getitem__

    def counting(self, name):
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(StoredTensors, "__getitem__", counting)
    monkeypatch.setattr("recast_cli.engine.base.base.Base.state", None)
    recast_json("export", "base.safetensors", "--format", "safetensors", "-o", "out.safetensors")
    assert sorted(read) == sorted(load_base("base.safetensors").tensors)


def test_inspect_sees_through_the_index_and_the_folder(folder):
    for item in ("llm", "llm/model.safetensors.index.json"):
        value = recast_json("inspect", item)
        assert (value["kind"], value["shards"]) == ("safetensors", 2)
        assert {each["name"]: tuple(each["shape"]) for each in value["tensors"]} == {
            name: tuple(tensor.shape) for name, tensor in tensors().items()
        }
        assert value["bytes"] == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert "tensors in 2 shards" in recast("inspect", "llm").stdout
    recast("mimic", "llm", "-o", "base.safetensors")
    value = recast_json("inspect", "base.safetensors")
    assert (value["architecture"], value["source"], value["coefficients"]) == (None, "llm", 24)


@pytest.mark.parametrize("spoiled", ["shard", "name", "json"])
def test_an_index_that_does_not_fit_its_shards(spoiled, folder):
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    if spoiled == "shard":
        (folder / "model-00002-of-00002.safetensors").unlink()
    elif spoiled == "name":
        values["weight_map"]["other"] = "model-00001-of-00002.safetensors"
    index.write_text("{" if spoiled == "json" else json.dumps(values))
    for command in (("inspect", index), ("mimic", index, "-o", "base.safetensors")):
        refused(*command)


@pytest.mark.parametrize("format", ["timm", "onnx"])
def test_there_is_no_network_to_export(format, folder):
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="pip install 'recast-cli[onnx]' for this test")
    recast("mimic", "llm", "-o", "base.safetensors")
    line = refused("export", "base.safetensors", "--format", format, "-o", "out.onnx" if format == "onnx" else "out")
    assert "no known architecture" in line
