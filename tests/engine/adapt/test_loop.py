"""The training loop with validation accuracies that are given."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from helpers import drawn
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from recast_cli.engine.adapt.learner import make_learner
from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.adapt.loop import TrainingData, train
from recast_cli.engine.adapt.state import Epoch, State, Trained
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.images.transforms import augment, draw_crops, normalise, statistics
from recast_cli.engine.layout.layout import Layout
from recast_cli.engine.model.adapters.adapter import Installed
from recast_cli.engine.model.attach import attach
from recast_cli.engine.runtime.accumulate import Accumulator
from recast_cli.engine.runtime.inference import infer, take_features
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions, settled

module = importlib.import_module("recast_cli.engine.adapt.loop")


def training_data(data, options, images, val_images):
    return TrainingData({"train": images, "val": val_images}, 2, data, options)


def everything(trained):
    return [*trained.values, *trained.head]


def with_values(state, more):
    """The state with further values that are trained."""
    trained = state.trained._replace(values=[*state.trained.values, *(value.detach().clone() for value in more)])
    return dataclasses.replace(state, trained=trained, best=trained)


@pytest.fixture
def setting(vit_base):
    """Learner, data config and the state of epoch 0, whose validation accuracy is 0.5."""
    learner = make_learner(vit_base, AdaptOptions(), torch.device("cpu"))
    head = Head(torch.zeros(2, 32), torch.zeros(2))
    trained = Trained([vit_base.coefficients(name) for name in vit_base.layout.modules], head)
    state = State(trained, trained, Probe(head, 0.1, 0.5), history=[Epoch(0, None, 0.5)])
    return learner, state, vit_base.known_architecture().preprocessing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracies", "best"),
    # of four images, two more right and two wrong, it is 0.18 at 0.5, 0.17 at 0.75, 0.16 at 0.9, 0.15 at 1; the start
    # has 0.5
    [
        ([0.2, 0.2, 0.2], 0),
        ([0.4, 0.5, 0.2], 2),
        ([0.3, 0.2, 0.33], 3),
        ([0.75, 0.6, 0.5], 2),
        ([0.9, 0.2, 0.7], 1),
        ([1.0, 0.86, 0.83], 2),
    ],
)
def test_the_latest_epoch_within_a_standard_error_of_the_best_is_kept(accuracies, best, setting, monkeypatch):
    learner, state, data = setting
    script = iter(accuracies)
    monkeypatch.setattr(module, "top_k", lambda logits, labels: next(script))
    states = [state]
    options = AdaptOptions(epochs=3, batch_size=4, lr=0.05)
    end = train(learner, state, training_data(data, options, drawn(8, 0), drawn(4, 1)), save=states.append)
    assert [epoch.val_top1 for epoch in end.history] == [0.5, *accuracies]
    assert end.best_epoch == best
    for kept, there in zip(everything(end.best), everything(states[best].trained), strict=True):
        assert torch.equal(kept, there)
    differences = [not torch.equal(states[i].trained.values[0], states[i + 1].trained.values[0]) for i in range(3)]
    assert all(differences)


def test_the_learning_rates_fall_along_a_cosine(setting, monkeypatch):
    learner, state, data = setting
    seen = []

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            seen.append([group["lr"] for group in self.param_groups])
            assert all(group["weight_decay"] == 0 for group in self.param_groups)
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    options = AdaptOptions(epochs=2, batch_size=4, lr=0.5, head_lr=0.25, adapter="melo", adapter_lr=0.125)
    adapter = Installed(learner.model, "melo", {})
    learner, state = dataclasses.replace(learner, adapter=adapter), with_values(state, adapter.parameters.values())
    train(learner, state, training_data(data, options, drawn(10, 0), drawn(4, 1)))
    shares = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 6)).item()) for step in range(6)]
    for rates, start in zip(zip(*seen, strict=True), (0.5, 0.125, 0.25), strict=True):
        assert rates == pytest.approx([start * share for share in shares])


def test_the_paper_s_recipe_is_kept(setting, monkeypatch):
    """AdamW with weight decay 1e-6, both learning rates 2e-3, a tenth after 33 epochs and again after 66."""
    learner, state, data = setting
    options, seen = settled(AdaptOptions(recipe="paper"), Layout("any", 1, ()), None), []
    assert (options.epochs, options.batch_size, options.patience) == (100, 128, 0)

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            seen.append([(group["lr"], group["weight_decay"]) for group in self.param_groups])

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(module, "infer", lambda *args, **options: torch.zeros(1, 32))
    monkeypatch.setattr(module, "top_k", lambda *args: 0.1)
    monkeypatch.setattr(
        module,
        "features",
        lambda model, images: (
            images.mean((2, 3)) @ torch.zeros(3, 32) + sum(coefficient.sum() for coefficient in learner.coefficients)
        ),
    )
    train(learner, state, training_data(data, options, drawn(4, 0), drawn(2, 1)))
    assert len(seen) == 100
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = torch.optim.lr_scheduler.StepLR(plain, 33, 0.1)
    for groups in seen:
        assert groups == [(pytest.approx(schedule.get_last_lr()[0]), 1e-6)] * 2
        plain.step()
        schedule.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracies", "patience", "epochs"),
    [([0.6, 0.5, 0.6, 0.9], 2, 3), ([0.5, 0.5], 2, 2), ([0.6, 0.5, 0.7, 0.6, 0.6], 2, 5), ([0.1] * 6, 0, 6)],
)
def test_training_stops_when_validation_has_not_improved(accuracies, patience, epochs, setting, monkeypatch):
    learner, state, data = setting
    script = iter(accuracies)
    monkeypatch.setattr(module, "top_k", lambda logits, labels: next(script))
    options = AdaptOptions(epochs=6, batch_size=8, patience=patience, lr=0.05)
    end = train(learner, state, training_data(data, options, drawn(8, 0), drawn(4, 1)))
    assert end.history[-1].number == epochs
    again = train(learner, end, training_data(data, options, drawn(8, 0), drawn(4, 1)))
    assert again is end  # a run that was killed after its last epoch does not begin another


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_an_epoch_is_judged_by_a_head_half_of_which_is_solved_for_what_it_saw(cut, setting, monkeypatch):
    """Images are not changed and coefficients hardly, so the features are those of the network at the start."""
    judged = []
    monkeypatch.setattr(module, "top_k", lambda logits, labels: judged.append(logits) or 0.6)
    monkeypatch.setattr(module, "augment", lambda pixels, crops: pixels)
    learner, state, data = setting
    images, val_images = drawn(24, 0), drawn(8, 1)
    options = AdaptOptions(epochs=2, batch_size=8, lr=1e-12, head_lr=0.05, precision="float32")
    if cut:  # the last part of a batch is not the whole of it
        monkeypatch.setattr(module, "Accumulator", lambda loss, parameters, size: Accumulator(loss, parameters, 3))
    end = train(learner, state, training_data(data, options, images, val_images))
    with torch.no_grad():
        found, val = (features(learner.model, normalise(each.pixels, data)).double() for each in (images, val_images))
    scaler = StandardScaler().fit(found.numpy())
    # of two classes it has one vector, the difference of ours, whose square is twice the sum of their squares
    regression = LogisticRegression(C=2 / (24 * state.probe.penalty), tol=1e-10, max_iter=10000)
    regression.fit(scaler.transform(found.numpy()), images.labels.numpy())
    weight, bias = (part.double() for part in end.trained.head)
    solved = (2 * judged[1].double() - (val @ weight.T + bias)).numpy()
    wanted = regression.predict_proba(scaler.transform(val.numpy()))[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(solved[:, 0] - solved[:, 1])), wanted, atol=5e-3)
    assert wanted.std() > 0.05
    assert float((weight[0] - weight[1]).abs().max()) > 0.05  # the other half


def test_a_batch_that_is_cut_for_want_of_memory_gives_the_same_result(setting, monkeypatch):
    learner, state, data = setting
    # in bfloat16 products are rounded otherwise in batches of another size
    options = AdaptOptions(epochs=2, batch_size=8, lr=0.05, precision="float32")
    whole = train(learner, state, training_data(data, options, drawn(10, 0), drawn(4, 1)))
    own = torch.nn.functional.cross_entropy

    def tight(logits, *rest, **options):
        if len(logits) > 2 and options.get("reduction") == "none":  # the solver's own are means
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return own(logits, *rest, **options)

    monkeypatch.setattr(module.F, "cross_entropy", tight)
    cut = train(learner, state, training_data(data, options, drawn(10, 0), drawn(4, 1)))
    for one, other in zip(everything(whole.trained), everything(cut.trained), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_every_image_is_seen_once_an_epoch(setting, monkeypatch):
    learner, state, data = setting
    images = drawn(10, 0)
    images.pixels[:] = torch.arange(10, dtype=torch.uint8)[:, None, None, None]
    seen = []

    def spy(pixels, crops):
        levels = pixels * torch.tensor(data.std).view(1, 3, 1, 1) + torch.tensor(data.mean).view(1, 3, 1, 1)
        seen.extend((levels[:, 0, 0, 0] * 255).round().int().tolist())
        return pixels

    monkeypatch.setattr(module, "augment", spy)
    options = AdaptOptions(epochs=2, batch_size=4, lr=0.05)
    train(learner, state, training_data(data, options, images, drawn(4, 1)))
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_augmenting_depends_on_the_generator_alone():
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    once, again = (augment(pixels, draw_crops(len(pixels), torch.Generator().manual_seed(4))) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, augment(pixels, draw_crops(len(pixels), torch.Generator().manual_seed(5))))
    assert once.shape == pixels.shape
    # a crop that lies inside the image: constants stay constants, and nothing exceeds the image's own values
    crops = draw_crops(len(pixels), torch.Generator())
    torch.testing.assert_close(augment(torch.full_like(pixels, 0.3), crops), torch.full_like(pixels, 0.3))
    assert once.abs().max() <= pixels.abs().max() + 1e-6


def test_about_half_of_the_images_are_mirrored():
    ramp = torch.linspace(0, 1, 16).expand(200, 3, 16, 16).contiguous()
    augmented = augment(ramp, draw_crops(len(ramp), torch.Generator().manual_seed(0)))
    slopes = augmented[:, 0, 8, 12] - augmented[:, 0, 8, 3]
    assert 70 < int((slopes < 0).sum()) < 130
    # a crop of 80 to 100 % of the area shows 89 to 100 % of the ramp's width
    assert (slopes.abs() / (9 / 15)).min() > 0.8**0.5 - 0.02
    assert (slopes.abs() / (9 / 15)).max() < 1.02


def test_what_was_measured_can_be_trained_on(vit_base):
    """A network that is frozen for good is measured in inference mode, whose tensors no backward pass may keep."""
    model, data = attach(vit_base), vit_base.known_architecture().preprocessing
    pixels = drawn(5, 0).pixels
    statistics.cache_clear()
    found = infer(take_features(model), pixels, data, torch.device("cpu"), batch_size=2, frozen=True)
    images = normalise(pixels, data)
    kept = statistics(data.mean, data.std, images.device)
    assert not any(each.is_inference() for each in (found, images, *kept))
    with torch.no_grad():
        torch.testing.assert_close(found, features(model, images))
    head = torch.nn.Linear(found.shape[1], 2)
    head(found).square().sum().backward()
    assert head.weight.grad.abs().sum() > 0


class Remembers(torch.nn.Module):
    """Makes something once and keeps it, as timm's networks with tables of attention biases do."""

    def __init__(self):
        super().__init__()
        self.table, self.kept = torch.nn.Parameter(torch.ones(3), requires_grad=False), None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.table[[2, 0, 1]]
        return x.mean((2, 3)) * self.kept


def test_what_a_network_remembers_of_being_measured_can_be_trained_with(vit_base):
    data, pixels, images = vit_base.known_architecture().preprocessing, drawn(2, 0).pixels, torch.randn(2, 3, 4, 4)
    model = Remembers()
    infer(model, pixels, data, torch.device("cpu"))
    model(images.requires_grad_()).sum().backward()
    assert images.grad.abs().sum() > 0
    model = Remembers()
    infer(model, pixels, data, torch.device("cpu"), frozen=True)
    with pytest.raises(RuntimeError, match="Inference tensors"):  # which is why frozen is said, not assumed
        model(images).sum().backward()
