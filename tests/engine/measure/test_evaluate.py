"""Measuring a task, or the source itself, on images."""

import dataclasses
import shutil

import pytest
import torch
from helpers import draw_images, perturbed, random_images
from PIL import Image
from timm.data import create_transform

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.architecture.build import create
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.evaluate import class_indices, evaluate, evaluate_source, predict
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.source.open import open_source
from recast_cli.engine.task.options import AdaptOptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def task(vit_base, data, weak_probe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "tasks" / "colours"
    task = adapt(vit_base, data, "colours", folder, AdaptOptions(epochs=3, batch_size=8, head_lr=0.05), device="cpu")
    assert not torch.allclose(task.vector, vit_base.vector, atol=1e-2)
    return task


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Other images of the same classes, noisier, so that some are mistaken."""
    return draw_images(tmp_path_factory.mktemp("data") / "other", count=9, seed=7, noise=200)


def by_timm(base, path):
    """One image through timm's own evaluation pipeline."""
    config = base.known_architecture().preprocessing
    transform = create_transform(**vars(config))
    return transform(Image.open(path).convert("RGB"))[None]


@torch.no_grad()
def guessed(base, task, path):
    """Probabilities of one image: the source's network with weights W, and the task's head."""
    model = create(base.known_architecture())
    model.load_state_dict(base.state(task.vector))
    found = model.forward_head(model.forward_features(by_timm(base, path)), pre_logits=True)[0]
    return (task.weight @ found + task.bias).softmax(0)


def test_accuracies_of_a_flat_folder_are_those_counted_by_hand(task, vit_base, other):
    found = evaluate(vit_base, task, data=other, device="cpu")
    hits, mistakes = {name: 0 for name in task.classes}, 0
    for path in sorted(other.glob("*/*.png")):
        guess = task.classes[int(guessed(vit_base, task, path).argmax())]
        hits[path.parent.name] += guess == path.parent.name
        mistakes += guess != path.parent.name
    assert 0 < mistakes < 27  # else this test would say little
    assert found.images == 27
    assert found.split == "data"
    assert found.top1 == pytest.approx(sum(hits.values()) / 27)
    assert found.per_class == pytest.approx({name: count / 9 for name, count in hits.items()})
    assert sum(pair["images"] for pair in found.confused) == mistakes
    assert found.top5 is None


@pytest.mark.parametrize(("parts", "measured"), [(("train", "val", "test"), "test"), (("train", "valid"), "valid")])
def test_of_a_folder_with_parts_the_test_or_validation_part_is_measured(
    parts, measured, task, vit_base, other, tmp_path
):
    for part in parts:
        draw_images(tmp_path / "d" / part, count=2, seed=1)
    shutil.rmtree(tmp_path / "d" / measured)
    shutil.copytree(other, tmp_path / "d" / measured)
    flat = evaluate(vit_base, task, data=other, device="cpu")
    found = evaluate(vit_base, task, data=tmp_path / "d", device="cpu")
    assert (found.images, found.top1, found.per_class) == (flat.images, flat.top1, flat.per_class)


def test_some_of_the_classes_are_enough(task, vit_base, other, tmp_path):
    shutil.copytree(other / "red", tmp_path / "d" / "red")
    found = evaluate(vit_base, task, data=tmp_path / "d", device="cpu")
    assert found.images == 9
    assert found.per_class["blue"] is None
    assert found.per_class["red"] == evaluate(vit_base, task, data=other, device="cpu").per_class["red"]


def test_a_class_that_is_not_known_is_refused(task, vit_base, tmp_path):
    draw_images(tmp_path / "d", ("blue", "gren"), 2)
    with pytest.raises(RecastError, match=r"gren is a class that is not known here.*green"):
        evaluate(vit_base, task, data=tmp_path / "d", device="cpu")


def test_the_recorded_test_split(task, vit_base, data, tmp_path):
    found = evaluate(vit_base, task, data, device="cpu")
    assert found.top1 == pytest.approx(task.record["metrics"]["test_top1"])
    with pytest.raises(RecastError, match="are gone"):
        evaluate(vit_base, task, tmp_path / "gone", device="cpu")
    shutil.copytree(data, tmp_path / "d")
    (tmp_path / "d" / task.record["split"]["test_images"][0]).unlink()
    with pytest.raises(RecastError, match="is gone"):
        evaluate(vit_base, task, tmp_path / "d", device="cpu")


def test_tasks_measured_by_one_switcher_are_measured_as_if_alone(task, vit_base, other):
    generator = torch.Generator().manual_seed(0)
    moved = dataclasses.replace(
        task, vector=perturbed(vit_base), weight=torch.randn(task.weight.shape, generator=generator)
    )
    alone = [evaluate(vit_base, each, data=other, device="cpu") for each in (task, moved)]
    assert alone[0].confused != alone[1].confused
    switcher = Switcher(vit_base, "cpu")
    for each, expected in ((task, alone[0]), (moved, alone[1]), (task, alone[0])):
        assert evaluate(vit_base, each, data=other, switcher=switcher) == expected


def test_predictions_are_class_and_probability(task, vit_base, other):
    paths = sorted(other.glob("*/*.png"))[::5]
    for guess, path in zip(predict(vit_base, task, paths, device="cpu"), paths, strict=True):
        probabilities = guessed(vit_base, task, path)
        assert guess.image == str(path)
        assert guess.label == task.classes[int(probabilities.argmax())]
        assert guess.probability == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_unreadable_images_are_reported_or_raised(task, vit_base, other, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"bad")
    good, problems = sorted(other.glob("*/*.png"))[0], []
    found = predict(vit_base, task, [tmp_path / "bad.png", good], device="cpu", on_problem=problems.append)
    assert [guess.image for guess in found] == [str(good)]
    assert len(problems) == 1
    assert predict(vit_base, task, [tmp_path / "bad.png"], device="cpu", on_problem=problems.append) == []
    with pytest.raises(RecastError, match=r"bad\.png"):
        predict(vit_base, task, [tmp_path / "bad.png"], device="cpu")


@torch.no_grad()
def source_guesses(base, root, labels):
    """Share of images whose folder's label comes first under the source's own classifier."""
    model = merge(base)
    paths = sorted(root.glob("*/*.png"))
    return sum(int(model(by_timm(base, path)).argmax()) == labels[path.parent.name] for path in paths) / len(paths)


@torch.no_grad()
def test_the_sources_classifier_by_index_and_by_map(vit_base, other, tmp_path):
    # folders named so that some images are right: by what the classifier itself says of the first of each class
    model = merge(vit_base)
    names = ("blue", "green", "red")
    by_index = {name: int(model(by_timm(vit_base, other / name / "000.png")).argmax()) for name in names}
    for name, index in by_index.items():
        target = tmp_path / "indexed" / str(index)
        target.mkdir(parents=True, exist_ok=True)
        for path in (other / name).iterdir():
            shutil.copy(path, target / f"{name}{path.name}")
    expected = source_guesses(vit_base, other, by_index)
    assert expected > 0
    mapped = evaluate_source(vit_base, other, by_index, device="cpu")
    indexed = evaluate_source(vit_base, tmp_path / "indexed", device="cpu")
    assert mapped.top1 == indexed.top1 == pytest.approx(expected)
    assert mapped.task is None
    assert set(indexed.per_class) == {str(index) for index in by_index.values()}


def test_class_maps_and_folders_that_do_not_fit(vit_base, other):
    with pytest.raises(RecastError, match="index 5, the classifier ends at 4"):
        evaluate_source(vit_base, other, {"blue": 0, "green": 5, "red": 1}, device="cpu")
    with pytest.raises(RecastError, match="not known here"):
        evaluate_source(vit_base, other, device="cpu")


def test_a_map_of_folders_called_like_other_classes(vit_base, tmp_path):
    draw_images(tmp_path / "d", classes=("1", "2", "3"), count=3)
    found = evaluate_source(vit_base, tmp_path / "d", {"1": 0, "2": 1, "3": 2}, device="cpu")
    assert list(found.per_class) == ["1", "2", "3"]
    merged = evaluate_source(vit_base, tmp_path / "d", {"1": 0, "2": 1, "3": 0}, device="cpu")
    assert list(merged.per_class) == ["1, 3", "2"]


def test_wnids_stand_for_imagenet_classes():
    labels = class_indices(1000)
    assert labels["n01440764"] == labels["0"] == 0
    assert labels["n15075141"] == labels["999"] == 999
    assert class_indices(5) == {str(i): i for i in range(5)}


def test_a_source_without_classifier(tmp_path, other):
    from helpers import VIT, VIT_ARGS, save_folder

    source = open_source(str(save_folder(tmp_path / "m", VIT, VIT_ARGS | {"num_classes": 0})))
    base = mimic(source, plan_layout(source.modules))
    assert merge(base)(random_images()).shape == (2, 32)
    with pytest.raises(RecastError, match="no classifier"):
        evaluate_source(base, other, device="cpu")
