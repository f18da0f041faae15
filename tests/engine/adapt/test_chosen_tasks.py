"""A task that chooses its coefficients: where, learned, written, resumed, measured, exported; damaged files."""

import pytest
import torch
from helpers import draw_images, random_images
from safetensors.torch import load_file

from recast_cli.engine.adapt import resume
from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.adapt.choose import LONGEST, best, choose_places, promises
from recast_cli.engine.adapt.cross_fit import FOLDS, Judges, split_folds
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.errors import DamagedFile, OptionError, RecastError
from recast_cli.engine.export.export import export
from recast_cli.engine.images.decode import Images
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.measure.evaluate import evaluate
from recast_cli.engine.model.attach import merge
from recast_cli.engine.model.entries import Entries, vector_of
from recast_cli.engine.storage.header import read_metadata
from recast_cli.engine.storage.writer import write_tensors
from recast_cli.engine.task.folder import COEFFICIENTS
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions
from recast_cli.engine.task.task import load_task

pytestmark = pytest.mark.usefixtures("every_epoch_counts")
OPTIONS = {"epochs": 2, "batch_size": 8, "choose": 20}


def run(base, data, folder, device="cpu", on_epoch=None, **given):
    return adapt(base, data, folder.name, folder, AdaptOptions(**OPTIONS | given), device=device, on_epoch=on_epoch)


@pytest.fixture(params=["vit_base", "conv_base"])
def base(request):
    return request.getfixturevalue(request.param)


def training_data(base, count=40, **given):
    """Random images of three classes."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.arange(count) % 3, [str(place) for place in range(count)], [])
    options = AdaptOptions(choose=20, precision="float32", **given)
    return TrainingData({"train": images}, 3, base.known_architecture().preprocessing, options)


def judges_of(data):
    """Judges of random weights."""
    draw = torch.Generator().manual_seed(1)
    heads = Head(torch.randn(FOLDS, 3, 32, generator=draw), torch.randn(FOLDS, 3, generator=draw))
    return Judges(heads, split_folds(data.images["train"].labels, 0))


def literally(base, data):
    """Mean and mean square of every vector's gradient, image by image, in units of the vector, those units, and the
    gradients of every image, all vectors one after another, by the root of its share."""
    plain, images, ((weight, bias), folds) = merge(base), data.images["train"], judges_of(data)
    vectors = [vector_of(plain, name).requires_grad_() for name in base.entries]
    weights = torch.ones(len(images)) if data.class_weights is None else data.class_weights[images.labels]
    sizes = [vector.detach().square().mean().sqrt() for vector in vectors]
    means, squares = ([torch.zeros_like(vector) for vector in vectors] for _ in range(2))
    rows = []
    for number, (label, fold) in enumerate(zip(images.labels.tolist(), folds.tolist(), strict=True)):
        found = features(plain, normalise(images.pixels[number : number + 1], data.preprocessing))[0]
        loss = -(weight[fold] @ found + bias[fold]).log_softmax(0)[label]
        found, share = torch.autograd.grad(loss, vectors, materialize_grads=True), weights[number] / weights.sum()
        gradients = [gradient * u for gradient, u in zip(found, sizes, strict=True)]
        for place, gradient in enumerate(gradients):
            means[place] += gradient * share
            squares[place] += gradient**2 * share
        rows.append(torch.cat(gradients).double() * share.sqrt())
    return means, squares, sizes, torch.stack(rows)


@pytest.mark.parametrize(
    ("statistic", "class_weights"),
    [
        pytest.param("damped", "none", marks=pytest.mark.slow),
        ("damped", "balanced"),
        pytest.param("natural", "none", marks=pytest.mark.slow),
        pytest.param("size", "none", marks=pytest.mark.slow),
    ],
)
def test_promises_and_units_are_those_of_the_gradients_of_single_images(statistic, class_weights, vit_base):
    data = training_data(vit_base, statistic=statistic, class_weights=class_weights)
    entries = Entries(merge(vit_base), vit_base.entries, 10)
    means, squares, sizes, rows = literally(vit_base, data)
    damping = torch.cat(squares).quantile(0.9, interpolation="lower")
    scores, units, _ = promises(entries, data, judges_of(data))
    wanted = {
        "damped": lambda g, f: g**2 / (f + damping),
        "natural": lambda g, f: g**2 / f.clamp_min(1e-30),
        "size": lambda g, f: g.abs(),
    }[statistic]
    for score, unit, g, f, size in zip(scores, units, means, squares, sizes, strict=True):
        used = f > 1e-8 * damping
        torch.testing.assert_close(score[used], wanted(g, f)[used], rtol=2e-3, atol=1e-6 * float(wanted(g, f).max()))
        torch.testing.assert_close(unit, size / (f + damping).sqrt(), rtol=1e-3, atol=0.0)
    places, own, cut = choose_places(entries, data, judges_of(data))
    assert places.tolist() == best(scores, 10).tolist()
    starts = torch.tensor([0, *map(len, means)]).cumsum(0)
    here = [int(starts[number]) + entry for number, entry in places.tolist()]
    alone = torch.stack([units[number][entry] for number, entry in places.tolist()])
    fisher = rows[:, here].T @ rows[:, here]
    long = (fisher.diagonal() + damping).rsqrt()
    curvature = torch.linalg.eigvalsh(fisher * long * long[:, None])[-1]
    assert curvature > 2
    longest = torch.stack([LONGEST * sizes[number] for number in places[:, 0].tolist()])
    torch.testing.assert_close(own, (alone / curvature**0.25).float().minimum(longest), rtol=2e-3, atol=0.0)
    assert (own < longest).any()
    norms = (rows[:, here] / torch.stack([sizes[number] for number in places[:, 0].tolist()]) * own).square().sum()
    assert float(cut) == pytest.approx(float(norms.sqrt()), rel=2e-3)
    assert not any(parameter.requires_grad for parameter in entries.model.parameters())


def test_units_are_no_longer_than_their_vectors_allow_where_nothing_is_left_to_learn(vit_base):
    data = training_data(vit_base)
    weight, bias = (part * 1e-6 for part in judges_of(data).heads)
    sure = Judges(Head(weight, bias), judges_of(data).folds)  # hardly a gradient
    entries = Entries(merge(vit_base), vit_base.entries, 10)
    places, units, _ = choose_places(entries, data, sure)
    vectors = [vector_of(entries.model, entries.names[number]) for number in places[:, 0].tolist()]
    assert units.tolist() == pytest.approx([LONGEST * float(each.square().mean().sqrt()) for each in vectors])


@pytest.mark.slow
def test_a_task_that_a_probe_has_learned_whole_is_not_torn_up(vit_base, tmp_path):
    draw_images(tmp_path / "data", count=17, classes=("blue", "green", "red"))
    task = run(vit_base, tmp_path / "data", tmp_path / "tasks" / "t", epochs=3, batch_size=6, precision="float32")
    assert task.record["metrics"]["linear_probe_val_top1"] == 1
    assert max(epoch["loss"] for epoch in task.record["history"][1:]) < 0.05


@pytest.mark.parametrize(("dictionary", "ending"), [("gains", "weight"), ("biases", "bias")])
def test_a_dictionary_of_gains_or_of_biases_alone(dictionary, ending, vit_base):
    entries = Entries(merge(vit_base), vit_base.entries, 10)
    data = training_data(vit_base, dictionary=dictionary)
    found, *_ = choose_places(entries, data, judges_of(data))
    assert all([*vit_base.entries][number].endswith(ending) for number, _ in found.tolist())


def test_equal_promises_are_taken_in_order():
    scores = [torch.tensor([1.0, 3.0]), torch.tensor([3.0, 0.0, 3.0])]
    assert best(scores, 4).tolist() == [[0, 1], [1, 0], [1, 2], [0, 0]]


def test_more_than_there_are_is_refused_before_anything_is_read_or_made(vit_base, data, tmp_path):
    entries = sum(vit_base.entries.values())
    with pytest.raises(OptionError, match=f"{entries + 1} entries are more than the {entries} of this network"):
        run(vit_base, data, tmp_path / "tasks" / "t", choose=48 + 2 * entries + 2)
    assert not (tmp_path / "tasks").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "moved", "kept"),
    [("vit_base", 0, 10), ("conv_base", 8, 6), ("scaled_base", 24, 12), ("scaled_base", 48, 24), ("vit_base", 48, 24)],
    indirect=["base"],
)
def test_what_was_learned_is_measured_again_from_its_files(base, moved, kept, data, tmp_path):
    task = run(base, data, tmp_path / "tasks" / "t", choose=moved + 2 * kept)
    again = load_task(tmp_path / "tasks" / "t", base)
    assert torch.equal(again.vector, task.vector)
    assert torch.equal(again.places, task.places)
    assert task.vector.shape == (moved + kept,)
    assert task.places.shape == (kept, 2)
    assert task.places.dtype == torch.int32
    assert task.vector.abs().min() > 0
    assert (task.record["coefficients"], task.record["places"]) == (moved + kept, kept)
    changed, plain = (merge(base, *given)(random_images()) for given in ((again.vector, None, None, again.places), ()))
    assert (changed - plain).abs().max() > 1e-6
    assert evaluate(base, again, data, device="cpu").top1 == task.record["metrics"]["test_top1"]


@pytest.mark.slow
def test_a_base_is_not_changed_and_tasks_do_not_disturb_each_other(vit_base, data, tmp_path):
    before = {name: tensor.clone() for name, tensor in vit_base.state().items()}
    first = run(vit_base, data, tmp_path / "tasks" / "first")
    run(vit_base, data, tmp_path / "tasks" / "second", seed=1)
    assert all(torch.equal(tensor, vit_base.state()[name]) for name, tensor in before.items())
    assert torch.equal(load_task(tmp_path / "tasks" / "first", vit_base).vector, first.vector)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "choose"), [("vit_base", 20), ("conv_base", 20), ("scaled_base", 48)], indirect=["base"]
)
def test_a_killed_run_goes_on_to_the_same_bytes(base, choose, data, tmp_path):
    run(base, data, tmp_path / "whole" / "t", epochs=3, choose=choose)

    def kill(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "cut" / "t"
    with pytest.raises(KeyboardInterrupt):
        run(base, data, folder, epochs=3, choose=choose, on_epoch=kill)
    run(base, data, folder, epochs=3, choose=choose)
    for name in (COEFFICIENTS, "head.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / "t" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("earlier", ["units", "longest"])
def test_an_unfinished_run_of_an_earlier_way_to_train_is_refused(earlier, vit_base, data, tmp_path):
    def kill(epoch):
        raise KeyboardInterrupt

    folder = tmp_path / "tasks" / "t"
    with pytest.raises(KeyboardInterrupt):
        run(vit_base, data, folder, on_epoch=lambda epoch: epoch.number and kill(epoch))
    state = torch.load(folder / resume.FILE, weights_only=True)
    del state["fixed"][earlier]
    torch.save(state, folder / resume.FILE)
    with pytest.raises(RecastError, match="unfinished run with other options"):
        run(vit_base, data, folder)


@pytest.mark.slow
def test_an_adapter_can_stand_beside_them(vit_base, data, tmp_path):
    task = run(vit_base, data, tmp_path / "tasks" / "t", adapter="melo", adapter_lr=3e-3)
    again = load_task(tmp_path / "tasks" / "t", vit_base)
    assert again.adapter is not None
    assert evaluate(vit_base, again, data, device="cpu").top1 == task.record["metrics"]["test_top1"]


@pytest.mark.slow
def test_the_merged_network_is_exported(base, data, tmp_path):
    task = run(base, data, tmp_path / "tasks" / "t", epochs=1)
    export(base, tmp_path / "out.safetensors", "safetensors", task)
    written, merged = load_file(tmp_path / "out.safetensors"), base.state(task.vector, task.places)
    for name in base.entries:
        assert torch.equal(written[name], merged[name])
    assert any(not torch.equal(merged[name], base.rest[name]) for name in base.entries)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "version"),
    [({"choose": 0}, 1), ({"choose": 24}, 2), ({"choose": 48, "dictionary": "entries"}, 2), ({"choose": 48}, 3)],
)
def test_the_file_is_small_and_of_the_oldest_format_that_holds_it(given, version, scaled_base, data, tmp_path):
    run(scaled_base, data, tmp_path / "tasks" / "t", epochs=1, **given)
    path = tmp_path / "tasks" / "t" / COEFFICIENTS
    assert path.stat().st_size < 1000
    assert read_metadata(path)["format"] == version


@pytest.mark.slow
@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([[0, 0], [0, 0]], "twice"),
        ([[0, 0], [0, 10**5]], "entry 100000"),
        ([[0, 0], [9999, 0]], "vector 9999"),
        ([[0, 0], [1, 0], [2, 0]], "other places than coefficients"),
    ],
)
def test_places_that_do_not_fit_are_refused(places, said, vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    run(vit_base, data, folder, epochs=1, choose=4)
    path = folder / COEFFICIENTS
    stored, metadata = load_file(path), read_metadata(path)
    write_tensors(path, stored | {"places": torch.tensor(places, dtype=torch.int32)}, metadata)
    with pytest.raises(RecastError, match=said):
        load_task(folder, vit_base)
    write_tensors(path, {"coefficients": stored["coefficients"]}, metadata)
    with pytest.raises(DamagedFile, match="has 2 coefficients, the base wants 48"):
        load_task(folder, vit_base)
    write_tensors(path, stored | {"coefficients": torch.zeros(7)}, metadata)
    with pytest.raises(DamagedFile, match="moves 5 coefficients of the layout, and 48 or 0 can move"):
        load_task(folder, vit_base)


@pytest.mark.parametrize("given", [{"choose": 1}, {"choose": -2}, {"choose": 4, "coefficients": False}])
def test_options_that_choose_nothing_are_refused(given):
    with pytest.raises(OptionError, match="choose"):
        AdaptOptions(**given)


@pytest.mark.parametrize("given", [{"statistic": "natural"}, {"dictionary": "gains"}])
def test_how_to_choose_says_nothing_where_nothing_is_chosen(given):
    with pytest.raises(OptionError, match="belongs to coefficients that the task chooses"):
        AdaptOptions(**given)
