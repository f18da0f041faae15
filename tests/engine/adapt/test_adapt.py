"""Adapting: what is learnt, recorded and left alone."""

import dataclasses
import importlib
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import draw_images
from PIL import Image

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.adapt.linear_probe import fit_probe
from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.decode import decode, evaluation_transform
from recast_cli.engine.images.splits import split_folder
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.measure.evaluate import evaluate
from recast_cli.engine.model.attach import merge
from recast_cli.engine.task.options import AdaptOptions
from recast_cli.engine.task.task import load_task

OPTIONS = AdaptOptions(epochs=3, batch_size=8, head_lr=0.05)
pytestmark = pytest.mark.usefixtures("weak_probe")
FILES = ("coefficients.safetensors", "head.safetensors")


def learned_bytes(folder):
    return [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def task(vit_base, data, weak_probe, tmp_path_factory):
    """One task that several tests look at, and its folder."""
    folder = tmp_path_factory.mktemp("home") / "tasks" / "colours"
    return adapt(vit_base, data, "colours", folder, OPTIONS, device="cpu"), folder


def test_coefficients_and_head_move_and_nothing_else(task, vit_base):
    task, folder = task
    assert task.vector.shape == (48,)
    assert not torch.equal(task.vector, vit_base.vector)
    assert task.weight.shape == (3, 32)
    assert task.classes == ["blue", "green", "red"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "task.yaml"])
    assert (folder / FILES[0]).stat().st_size < 2000


def test_equal_seeds_give_equal_bytes(task, vit_base, data, tmp_path):
    _, folder = task
    adapt(vit_base, data, "again", tmp_path / "tasks" / "again", OPTIONS, device="cpu")
    assert learned_bytes(tmp_path / "tasks" / "again") == learned_bytes(folder)


@pytest.mark.slow
def test_another_seed_gives_other_coefficients_but_the_same_split(task, vit_base, data, tmp_path):
    first, _ = task
    options = dataclasses.replace(OPTIONS, seed=1)
    other = adapt(vit_base, data, "other", tmp_path / "tasks" / "other", options, device="cpu")
    assert other.record["split"] == first.record["split"]
    assert other.record["history"][0] == first.record["history"][0]
    assert other.record["history"][1:] != first.record["history"][1:]


def test_a_finished_task_is_returned_as_it_is(task, vit_base, data):
    task, folder = task
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    again = adapt(vit_base, data, "colours", folder, OPTIONS, device="cpu")
    assert torch.equal(again.vector, task.vector)
    assert again.record == task.record
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"epochs": 4}, {"seed": 5}, {"split_seed": 1}, {"image_size": 40}])
def test_a_finished_task_with_other_options_is_refused(change, task, vit_base, data):
    _, folder = task
    before = learned_bytes(folder)
    with pytest.raises(RecastError, match="restart=True") as caught:
        adapt(vit_base, data, "colours", folder, dataclasses.replace(OPTIONS, **change), device="cpu")
    assert next(iter(change)) in str(caught.value)
    assert learned_bytes(folder) == before


@pytest.mark.slow
def test_restart_replaces_a_finished_task(task, vit_base, data, tmp_path):
    _, folder = task
    copy = tmp_path / "tasks" / "colours"
    shutil.copytree(folder, copy)
    again = adapt(vit_base, data, "colours", copy, dataclasses.replace(OPTIONS, lr=0.1), device="cpu", restart=True)
    assert again.record["options"]["lr"] == 0.1
    assert learned_bytes(copy) != learned_bytes(folder)


def test_no_epoch_is_chosen_that_is_clearly_worse_than_another(task):
    history = task[0].record["history"]
    accuracies = [epoch["val_top1"] for epoch in history]
    assert [epoch["number"] for epoch in history] == [0, 1, 2, 3]
    images, highest = task[0].record["split"]["val"], max(accuracies)
    near = highest - (highest * (1 - highest) / images) ** 0.5
    assert task[0].record["metrics"]["best_epoch"] == max(n for n, each in enumerate(accuracies) if each >= near)
    assert task[0].record["metrics"]["linear_probe_val_top1"] == accuracies[0]


def test_the_task_is_what_the_best_epoch_ended_with(vit_base, data, tmp_path, monkeypatch):
    states = []
    monkeypatch.setattr(
        "recast_cli.engine.adapt.resume.save_state", lambda folder, identity, state: states.append(state)
    )
    accuracies = iter([0.5, 0.9, 0.1])
    monkeypatch.setattr("recast_cli.engine.adapt.loop.top_k", lambda logits, labels: next(accuracies))
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", OPTIONS, device="cpu")
    assert task.record["metrics"]["best_epoch"] == 2
    coefficients, (weight, bias) = states[1].trained
    assert torch.equal(task.vector, torch.cat([tensor.flatten() for tensor in coefficients]))
    # the solved half is the weak probe, which is 0
    assert torch.equal(task.weight, weight / 2)
    assert torch.equal(task.bias, bias / 2)
    assert not torch.equal(weight, states[2].trained.head.weight)


def accuracy_by_hand(base, task, data, paths):
    """Top-1 of the merged network, one image at a time."""
    architecture = base.known_architecture()
    model, transform = merge(base, task.vector), evaluation_transform(architecture.preprocessing)
    mean, std = (torch.tensor(getattr(architecture.preprocessing, key))[:, None, None] for key in ("mean", "std"))
    hits = 0
    for path in paths:
        pixels = transform(Image.open(data / path).convert("RGB")).float() / 255
        with torch.no_grad():
            tokens = model.forward_features(((pixels - mean) / std)[None])
            found = model.forward_head(tokens, pre_logits=True)
        hits += task.classes[int((task.weight @ found[0] + task.bias).argmax())] == path.split("/")[0]
    return hits / len(paths)


def test_recorded_accuracies_are_those_of_the_merged_network(task, vit_base, data):
    task, folder = task
    split, metrics = task.record["split"], task.record["metrics"]
    assert accuracy_by_hand(vit_base, task, data, split["val_images"]) == pytest.approx(metrics["val_top1"])
    assert accuracy_by_hand(vit_base, task, data, split["test_images"]) == pytest.approx(metrics["test_top1"])
    measured = evaluate(vit_base, load_task(folder, vit_base), data, device="cpu")
    assert measured.top1 == pytest.approx(metrics["test_top1"])
    assert measured.images == len(split["test_images"]) == split["test"]
    assert measured.split == "test"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["val", "test"])
def test_the_linear_probe_is_measured_on_the_same_images(part, vit_base, data, tmp_path, monkeypatch):
    monkeypatch.setattr("recast_cli.engine.adapt.fit.fit_probe", fit_probe)
    monkeypatch.setattr("recast_cli.engine.adapt.loop.top_k", lambda logits, labels: 1.0)  # a spoilt task wins over it
    monkeypatch.setattr("recast_cli.engine.adapt.fit.as_good", lambda accuracy, highest, images: True)
    options = AdaptOptions(epochs=1, batch_size=4, lr=3.0, head_lr=50.0)
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", options, device="cpu")
    assert task.record["metrics"]["test_top1"] < task.record["metrics"]["linear_probe_test_top1"]
    split, architecture = split_folder(data), vit_base.known_architecture()
    model = merge(vit_base)

    def taken(items):
        images = decode(data, items, architecture.preprocessing)
        with torch.no_grad():
            tokens = model.forward_features(normalise(images.pixels, architecture.preprocessing))
            return model.forward_head(tokens, pre_logits=True), images.labels

    probe, (found, labels) = fit_probe(taken(split.train), taken(split.val), 3), taken(getattr(split, part))
    hits = (found @ probe.head.weight.T + probe.head.bias).argmax(1) == labels
    assert task.record["metrics"][f"linear_probe_{part}_top1"] == pytest.approx(float(hits.double().mean()))
    assert task.record["metrics"]["linear_probe_penalty"] == probe.penalty


def test_the_record_is_plain_yaml_and_says_all(task, vit_base):
    task, folder = task
    record = yaml.safe_load((folder / "task.yaml").read_text())
    assert record == task.record
    assert record["base_id"] == vit_base.base_id
    assert record["options"] == dataclasses.asdict(OPTIONS) | {"choose": 0, "lr": 0.05}
    assert record["coefficients"] == 48
    assert record["head_parameters"] == 3 * 32 + 3
    assert record["image_size"] == 32
    assert not set(record["split"]["val_images"]) & set(record["split"]["test_images"])


def test_the_base_file_is_not_touched(vit_base, data, tmp_path):
    path = tmp_path / "base.safetensors"
    save_base(vit_base, path)
    content, changed = path.read_bytes(), path.stat().st_mtime_ns
    base = load_base(path)
    adapt(base, data, "t", tmp_path / "tasks" / "t", AdaptOptions(epochs=1), device="cpu")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, changed)
    assert all(torch.equal(base.tensors[name], tensor) for name, tensor in vit_base.tensors.items())


def test_only_coefficients_change_in_the_network_that_is_trained(conv_base, data, tmp_path, monkeypatch):
    module = importlib.import_module("recast_cli.engine.adapt.learner")
    seen = []

    def spy(*args, **kwargs):
        model = attach(*args, **kwargs)
        seen.append((model, {name: tensor.clone() for name, tensor in model.state_dict().items()}))
        return model

    attach = module.attach
    monkeypatch.setattr(module, "attach", spy)
    task = adapt(conv_base, data, "t", tmp_path / "tasks" / "t", OPTIONS, device="cpu")
    ((model, before),) = seen
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.parametrizations.weight.original" for name in conv_base.layout.modules}
    # among the rest are the running statistics of batch norm, and merging a task keeps them too
    assert any(name.endswith("running_mean") for name in before)
    merged = merge(conv_base, task.vector).state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in conv_base.rest.items())


@pytest.mark.slow
def test_another_image_size_is_used_and_recorded(vit_base, data, tmp_path):
    options = AdaptOptions(epochs=1, image_size=40)
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", options, device="cpu")
    assert task.image_size == 40
    measured = evaluate(vit_base, load_task(tmp_path / "tasks" / "t"), data, device="cpu")
    assert measured.top1 == pytest.approx(task.record["metrics"]["test_top1"])


@pytest.mark.slow
def test_class_weights_change_what_is_learnt(vit_base, tmp_path):
    draw_images(tmp_path / "d", ("a",), 30)
    draw_images(tmp_path / "d", ("b", "c"), 6, noise=120)
    tasks = [
        adapt(
            vit_base,
            tmp_path / "d",
            words,
            tmp_path / "tasks" / words,
            dataclasses.replace(OPTIONS, class_weights=words),
        )
        for words in ("none", "balanced")
    ]
    assert not torch.equal(tasks[0].weight, tasks[1].weight)


def test_unreadable_images_are_recorded_or_fail(vit_base, tmp_path):
    root = draw_images(tmp_path / "d", ("a", "b"), 8)
    for name in ("a/x.png", "b/y.png"):
        (root / name).write_bytes(b"broken")
    task = adapt(vit_base, root, "t", tmp_path / "tasks" / "t", AdaptOptions(epochs=1), device="cpu")
    assert sorted(task.record["skipped_images"]) == ["a/x.png", "b/y.png"]
    with pytest.raises(RecastError, match="not a readable image"):
        adapt(vit_base, root, "u", tmp_path / "tasks" / "u", AdaptOptions(epochs=1, on_bad_image="fail"), device="cpu")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", ".hidden", "end.", "end ", "a\nb", "ü"])
def test_names_that_are_no_folder_names_are_refused(name, vit_base, data, tmp_path):
    with pytest.raises(RecastError, match="cannot be the name"):
        adapt(vit_base, data, name, tmp_path / "tasks" / "t")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpux"])
def test_devices_that_are_not_there_are_refused(device, vit_base, data, tmp_path):
    with pytest.raises(RecastError, match=f"device {device}"):
        adapt(vit_base, data, "t", tmp_path / "tasks" / "t", device=device)


def test_a_loss_that_is_not_finite_stops_with_advice(vit_base, data, tmp_path):
    with pytest.raises(RecastError, match="Lower lr or head_lr"):
        adapt(vit_base, data, "t", tmp_path / "tasks" / "t", AdaptOptions(epochs=3, lr=1e30), device="cpu")
    assert not (tmp_path / "tasks" / "t" / "task.yaml").exists()


def test_data_is_recorded_relative_to_the_home_of_the_tasks(vit_base, tmp_path):
    draw_images(tmp_path / "home" / "data", ("a", "b"), 6)
    home = tmp_path / "home"
    task = adapt(vit_base, home / "data", "t", home / "tasks" / "t", AdaptOptions(epochs=1), device="cpu")
    assert task.record["data"] == "data"
    moved = tmp_path / "elsewhere"
    home.rename(moved)
    again = adapt(vit_base, moved / "data", "t", moved / "tasks" / "t", AdaptOptions(epochs=1), device="cpu")
    assert again.record == task.record
    assert Path(again.record["data"]) == Path("data")


def test_a_class_that_cannot_be_read_is_named(vit_base, data, tmp_path):
    shutil.copytree(data, tmp_path / "some")
    name = sorted(path.name for path in (tmp_path / "some").iterdir() if path.is_dir())[0]
    for file in (tmp_path / "some" / name).rglob("*.png"):
        file.write_bytes(b"none")
    with pytest.raises(RecastError, match=f"Not one training image of the class {name} in"):
        adapt(vit_base, tmp_path / "some", "t", tmp_path / "tasks" / "t", OPTIONS, device="cpu")
    assert not (tmp_path / "tasks").exists()
