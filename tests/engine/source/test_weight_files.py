"""Weight files as sources: with and without the name of their architecture."""

import pytest
import timm
import torch
from helpers import network
from safetensors.torch import save_file

from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError, UnknownArchitecture
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.source.open import open_source
from recast_cli.engine.source.source import from_model

NAME = "test_vit"


@pytest.fixture(scope="module")
def state():
    return network(NAME, {"num_classes": 7}).state_dict()


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
def test_every_kind_of_file_holds_the_same_source(suffix, state, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    known, unknown = open_source(str(path), architecture=NAME), open_source(str(path))
    assert same(known.tensors, state)
    assert same(unknown.tensors, state)
    assert known.digest == unknown.digest
    assert known.architecture.name.split(".")[0] == NAME
    assert known.architecture.args["num_classes"] == 7
    assert unknown.architecture is None
    assert open_source(NAME, weights=path).architecture == known.architecture


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema"])
def test_training_wrappers_and_their_prefixes_are_taken_off(key, state, tmp_path):
    wrapped = {key: {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3, "arch": "x"}
    torch.save(wrapped, tmp_path / "w.pth")
    assert same(open_source(str(tmp_path / "w.pth")).tensors, state)
    assert same(open_source(str(tmp_path / "w.pth"), architecture=NAME).tensors, state)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"x": torch.ones(2, 2), "state": bomb}])
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_a_pickle_of_code_is_refused_and_not_run(wrap, suffix, tmp_path):
    path = tmp_path / f"evil.{suffix}"
    torch.save(wrap(Bomb()), path)
    for architecture in (None, NAME):
        with pytest.raises(RecastError, match=f"evil.{suffix}"):
            open_source(str(path), architecture=architecture)
    assert not (tmp_path / "exploded").exists()


def test_modules_of_an_unknown_architecture_go_by_name_and_shape(tmp_path):
    tensors = {
        "enc.0.attn.weight": torch.randn(4, 4),
        "enc.1.attn.weight": torch.randn(4, 4),
        "conv.weight": torch.randn(4, 3, 3, 3),
        "norm.weight": torch.randn(4),
        "pos_embed.weight": torch.randn(9, 4),
        "table.weight": torch.ones(3, 3, dtype=torch.int64),
        "enc.0.attn.bias": torch.randn(4),
    }
    torch.save(tensors, tmp_path / "strange.pth")
    source = open_source(str(tmp_path / "strange.pth"))
    assert source.modules == {"enc.0.attn": (4, 4), "enc.1.attn": (4, 4), "conv": (4, 3, 3, 3)}
    base = mimic(source, plan_layout(source.modules))
    assert base.layout.modules == ("enc.0.attn", "enc.1.attn")
    save_base(base, tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    assert same(loaded.state(), tensors)
    with pytest.raises(UnknownArchitecture, match="architecture=NAME"):
        loaded.known_architecture()


def test_a_file_without_a_classifier(state, tmp_path):
    headless = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    save_file(headless, tmp_path / "features.safetensors")
    source = open_source(str(tmp_path / "features.safetensors"), architecture=NAME)
    assert same(source.tensors, headless)
    assert source.architecture.args["num_classes"] == 0


def test_tied_tensors_are_stored_once(state, tmp_path):
    model = network(NAME, {"num_classes": 7})
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    source = from_model("tied", model, {})
    assert source.aliases == {"blocks.1.mlp.fc1.weight": "blocks.0.mlp.fc1.weight"}
    assert "blocks.1.mlp.fc1.weight" not in source.tensors
    assert not {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"} & source.modules.keys()
    save_base(mimic(source, plan_layout(source.modules)), tmp_path / "base")
    assert same(load_base(tmp_path / "base").state(), model.state_dict())


def test_tied_tensors_in_a_file_of_unknown_architecture(tmp_path):
    shared = torch.randn(6, 6)
    tensors = {"a.weight": torch.randn(3, 6), "head.weight": shared, "tok.weight": shared}
    torch.save(tensors, tmp_path / "tied.pth")
    source = open_source(str(tmp_path / "tied.pth"))
    assert source.aliases == {"tok.weight": "head.weight"}
    assert source.modules.keys() == {"a"}
    save_base(mimic(source, plan_layout(source.modules, patterns=["a"])), tmp_path / "base")
    assert same(load_base(tmp_path / "base").state(), tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.attn.qkv.weight": torch.zeros(3, 4)}, r"blocks\.0\.attn\.qkv\.weight of shape \(3, 4\)"),
        ({"blocks.0.attn.qkv.weight": None}, r"lacks blocks\.0\.attn\.qkv\.weight"),
        ({"extra.weight": torch.zeros(3, 4)}, r"has extra\.weight too many"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message, state, tmp_path):
    wrong = {key: tensor for key, tensor in {**state, **change}.items() if tensor is not None}
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(RecastError, match=message):
        open_source(str(tmp_path / "wrong.pth"), architecture=NAME)


def test_another_architecture_does_not_fit(state, tmp_path):
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(RecastError, match="do not fit test_resnet"):
        open_source(str(tmp_path / "vit.pth"), architecture="test_resnet")


def test_an_architecture_nobody_knows(state, tmp_path):
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(RecastError, match="Did you mean 'test_vit'"):
        open_source(str(tmp_path / "vit.pth"), architecture="test_vitt")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.pth", b""), ("a.pth", b"not a pickle"), ("a.safetensors", b""), ("a.safetensors", b"\x10" * 40)],
)
def test_files_that_are_no_weights(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecastError, match=name):
        open_source(str(tmp_path / name))


def test_a_missing_file_and_one_without_tensors(tmp_path):
    for name in ("gone.pth", "gone.safetensors"):
        with pytest.raises(RecastError, match=f"{name} does not exist"):
            open_source(name)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(RecastError, match="no tensors"):
        open_source("none.pth")


def test_half_precision_files_are_exact_too(state, tmp_path):
    half = {key: tensor.half() for key, tensor in state.items()}
    torch.save(half, tmp_path / "half.pth")
    source = open_source("half.pth")
    mimicked = mimic(source, plan_layout(source.modules))
    assert all(error["relative_error"] == 0 for error in mimicked.errors.values())
    for module in mimicked.layout.modules:
        assert torch.equal(mimicked.state()[f"{module}.weight"], half[f"{module}.weight"].float())


def test_options_that_mean_nothing_are_refused(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(RecastError, match="weights does not apply"):
        open_source("w.pth", weights=tmp_path / "w.pth")
    with pytest.raises(RecastError, match="architecture does not apply"):
        open_source(NAME, architecture=NAME)


def test_timm_agrees_with_the_logits_of_a_file(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    source = open_source("w.pth", architecture=NAME)
    plain = timm.create_model(NAME, num_classes=7, checkpoint_path="w.pth")
    assert same(source.tensors, plain.state_dict())
