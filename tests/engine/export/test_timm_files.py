"""timm's own formats, opened by timm alone and compared with the merged network by the logits of fresh images."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from fixtures.export import expected, learned, logits, task_of
from helpers import CONV, CONV_ARGS, MEAN, STD, VIT, VIT_ARGS, network, random_images, save_folder
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config

from recast_cli.engine.base.file import save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.export.classifier import with_classifier
from recast_cli.engine.export.export import export, export_all
from recast_cli.engine.export.merged import merge_task
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.adapters.adapter import Adapter
from recast_cli.engine.model.attach import merge
from recast_cli.engine.source.open import open_source
from recast_cli.engine.source.source import from_model


@pytest.fixture(params=["vit", "conv"])
def base(request):
    return request.getfixturevalue(f"{request.param}_base")


def test_a_task_as_timms_state_dict(base, tmp_path):
    task = task_of(base)
    found = export(base, tmp_path / "colours.safetensors", "safetensors", task)
    name, args = (VIT, VIT_ARGS) if base.architecture.name == VIT else (CONV, CONV_ARGS)
    path = tmp_path / "colours.safetensors"
    model = timm.create_model(name, **{**args, "num_classes": 3}, checkpoint_path=str(path))
    assert torch.equal(logits(model, random_images(4)), expected(base, task, random_images(4)))
    assert (found.files, found.bytes, found.max_logit_difference) == ([path], path.stat().st_size, 0)
    assert torch.equal(logits(eval(found.opened), random_images(4)), expected(base, task, random_images(4)))
    assert open_source(str(path)).tensors.keys() == model.state_dict().keys()  # a plain file, none of recast


def test_a_task_as_timms_folder(base, tmp_path):
    task = task_of(base)
    found = export(base, tmp_path / "colours", "timm", task)
    model = timm.create_model(f"local-dir:{tmp_path / 'colours'}", pretrained=True)
    assert torch.equal(logits(model, random_images(4)), expected(base, task, random_images(4)))
    assert found.max_logit_difference == 0
    assert (model.num_classes, model.pretrained_cfg["label_names"]) == (3, ["blue", "green", "red"])
    data = resolve_model_data_config(model)
    assert data == base.architecture.data
    assert (data["mean"], data["std"], data["crop_pct"], data["interpolation"]) == (MEAN, STD, 0.9, "bicubic")
    assert not torch.equal(  # what timm does without `pretrained`, as the documents say
        logits(timm.create_model(f"local-dir:{tmp_path / 'colours'}"), random_images(4)),
        logits(model, random_images(4)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("format", ["safetensors", "timm"])
def test_another_image_size_than_the_networks_own(format, base, tmp_path):
    task = task_of(base, size=48)
    path = tmp_path / ("out.safetensors" if format == "safetensors" else "out")
    found = export(base, path, format, task)
    model, images = eval(found.opened), random_images(3, size=48)
    assert torch.equal(logits(model, images), expected(base, task, images))
    assert ("img_size=48" in found.opened) == (format == "safetensors" and base.architecture.name == VIT)
    if format == "timm":
        assert resolve_model_data_config(model)["input_size"] == [3, 48, 48]


@pytest.mark.slow
def test_an_exported_folder_is_a_source_again(vit_base, tmp_path):
    task = task_of(vit_base)
    export(vit_base, tmp_path / "colours", "timm", task)
    source = open_source(str(tmp_path / "colours"))
    again = mimic(source, plan_layout(source.modules))
    assert torch.equal(logits(merge(again), random_images()), expected(vit_base, task, random_images()))


@pytest.mark.parametrize("format", ["safetensors", "timm"])
def test_without_a_task_it_is_the_source(format, base, tmp_path):
    path = tmp_path / ("out.safetensors" if format == "safetensors" else "out")
    found = export(base, path, format)
    assert torch.equal(logits(eval(found.opened), random_images()), logits(merge(base), random_images()))
    assert (found.task, found.identical, found.max_logit_difference) == (None, True, 0)
    assert "label_names" not in json.loads((path / "config.json").read_text()) if format == "timm" else True


def test_a_lossy_base_is_not_said_to_be_the_source(vit_source, tmp_path):
    base = mimic(vit_source, plan_layout(vit_source.modules, templates=1))
    found = export(base, tmp_path / "out.safetensors", "safetensors")
    assert (found.identical, found.max_logit_difference) == (False, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "kind"), [("melo", "vit"), ("dora", "vit"), ("piggyback", "conv")])
def test_adapters_that_change_weights_are_merged(adapter, kind, request, tmp_path):
    base = request.getfixturevalue(f"{kind}_base")
    task = task_of(base, adapter=learned(base, adapter))
    assert not torch.equal(
        expected(base, task, random_images()), expected(base, replace(task, adapter=None), random_images())
    )
    found = export(base, tmp_path / "out", "timm", task)
    assert torch.equal(logits(eval(found.opened), random_images()), expected(base, task, random_images()))


@pytest.mark.parametrize(("adapter", "kind"), [("adaptformer", "vit"), ("clr", "conv")])
@pytest.mark.parametrize("format", ["safetensors", "timm"])
def test_adapters_beside_the_network_have_no_state_dict_in_timm(adapter, kind, format, request, tmp_path):
    base = request.getfixturevalue(f"{kind}_base")
    task = task_of(base, adapter=learned(base, adapter))
    with pytest.raises(RecastError, match=f"the adapter {adapter} puts modules beside .* format=onnx"):
        export(base, tmp_path / ("out.safetensors" if format == "safetensors" else "out"), format, task)
    assert list(tmp_path.iterdir()) == []


def base_of(name, **args):
    source = from_model(name, network(name, args), args)
    return mimic(source, plan_layout(source.modules))


def test_two_averaged_classifiers_are_both_the_head(tmp_path):
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    base = base_of("deit_tiny_distilled_patch16_224", **args)
    task = task_of(base)
    found = export(base, tmp_path / "out", "timm", task)
    assert found.max_logit_difference < 1e-6
    torch.testing.assert_close(logits(eval(found.opened), random_images()), expected(base, task, random_images()))


def test_a_head_that_is_no_classifier_of_timms_is_refused(vit_base, monkeypatch, tmp_path):
    """What would be written is measured first: here timm's network does more to its features than a head would."""
    task = task_of(vit_base)
    with pytest.raises(RecastError, match="takes 32 features, and the head of task colours was learned on 31"):
        with_classifier(replace(merge_task(vit_base, task), task=task_of(vit_base, features=31)))
    ours = merge_task(vit_base, task)
    head = type(ours.model).forward_head
    monkeypatch.setattr(
        type(ours.model), "forward_head", lambda self, x, pre_logits=False: head(self, x, pre_logits) * (2 - pre_logits)
    )
    with pytest.raises(RecastError, match="more than one linear layer on its features"):
        export(vit_base, tmp_path / "out", "timm", task)
    assert list(tmp_path.iterdir()) == []


def test_several_classifiers_that_timm_does_not_name_are_refused(vit_base):
    ours = merge_task(vit_base, task_of(vit_base))
    ours.model.pretrained_cfg["classifier"] = ("head", "elsewhere")
    with pytest.raises(RecastError, match=r"cannot be replaced: .*elsewhere"):
        with_classifier(ours)


def test_what_timm_opens_is_compared(vit_base, monkeypatch, tmp_path):
    """Weights that come out otherwise than they went in are no export."""
    write = "recast_cli.engine.storage.writer.TensorWriter.write"
    original = __import__("recast_cli.engine.storage.writer", fromlist=["x"]).TensorWriter.write

    def damaged(self, name, tensor):
        original(self, name, tensor + 1 if name == "blocks.3.attn.qkv.weight" else tensor)

    monkeypatch.setattr(write, damaged)
    for format, name in (("safetensors", "out.safetensors"), ("timm", "out")):
        with pytest.raises(RecastError, match="differs from the merged network by"):
            export(vit_base, tmp_path / name, format, task_of(vit_base))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_tasks_are_all_written_or_none(vit_base, tmp_path):
    tasks = [task_of(vit_base, name=name, seed=seed) for seed, name in enumerate("ab")]
    found = export_all(vit_base, tasks, "safetensors", tmp_path / "models")
    assert [each.files for each in found] == [[tmp_path / "models" / f"{name}.safetensors"] for name in "ab"]
    for task, each in zip(tasks, found, strict=True):
        assert torch.equal(logits(eval(each.opened), random_images()), expected(vit_base, task, random_images()))
    beside = replace(tasks[1], adapter=learned(vit_base, "adaptformer"))
    with pytest.raises(RecastError, match="adaptformer"):
        export_all(vit_base, [tasks[0], beside], "timm", tmp_path / "others")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_files_have_the_permissions_of_any_other(vit_base, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    export(vit_base, tmp_path / "out", "timm")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "plain" / "file").stat().st_mode}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_sources_own_types_come_back(dtype, tmp_path):
    """Also where a zero is negative, and two templates are mixed."""
    file = save_folder(tmp_path / "half", VIT, {**VIT_ARGS, "depth": 2}) / "model.safetensors"
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
    state["blocks.0.attn.qkv.weight"][0, :5] = -0.0
    save_file(state, file)
    source = open_source(str(tmp_path / "half"))
    base = save_base(mimic(source, plan_layout(source.modules, layout="paper-both")), tmp_path / "base")
    assert export(base, tmp_path / "out.safetensors", "safetensors").identical
    after = load_file(tmp_path / "out.safetensors")
    assert state.keys() == after.keys()
    assert all(torch.equal(state[k].view(torch.int16), after[k].view(torch.int16)) for k in state)


def test_a_data_config_of_another_size_than_the_networks_is_said():
    base = base_of(VIT, **{**VIT_ARGS, "depth": 1})  # for 32 pixels, where timm's config has 224
    with pytest.raises(RecastError, match=r"does not take the images of 3 x 224 x 224 .* Correct input_size"):
        merge_task(base, None)


def test_an_adapter_of_another_network_is_refused(vit_base):
    with pytest.raises(RecastError, match="tensor"):
        merge_task(vit_base, task_of(vit_base, adapter=Adapter("melo", {"rank": 1, "seed": 0}, {})))
