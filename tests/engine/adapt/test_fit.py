"""What the road of learning keeps in memory, and when it calls."""

import copy
import importlib
import weakref

import pytest
import torch
from helpers import drawn

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.adapt.cross_fit import fit_judges
from recast_cli.engine.adapt.fit import learn_task, probe_network
from recast_cli.engine.adapt.learner import make_learner
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.task.options import AdaptOptions

CPU = torch.device("cpu")
CASES = [{}, {"recipe": "paper"}, {"adapter": "rosa"}, {"adapter": "melo", "coefficients": False}]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_the_trained_network_is_gone_before_the_test_images_are_measured(given, vit_base, data, tmp_path, monkeypatch):
    module, networks = importlib.import_module("recast_cli.engine.adapt.adapt"), []

    def noted(*arguments):
        learner = make_learner(*arguments)
        networks.append(weakref.ref(learner.model))
        return learner

    def gone(*arguments):
        assert [network() for network in networks] == [None]
        return switcher(*arguments)

    switcher = module.Switcher
    monkeypatch.setattr(module, "make_learner", noted)
    monkeypatch.setattr(module, "Switcher", gone)
    adapt(vit_base, data, "t", tmp_path / "tasks" / "t", AdaptOptions(epochs=1, **given), device="cpu")
    assert networks


@pytest.mark.slow
@pytest.mark.parametrize("cross_fit", [False, True])
def test_a_known_probe_is_not_fitted_again_and_training_starts_from_it(cross_fit, vit_base):
    options = AdaptOptions(epochs=2, batch_size=8, lr=0.05, precision="float32", cross_fit=cross_fit)
    config, images = vit_base.known_architecture().preprocessing, {"train": drawn(12, 0), "val": drawn(6, 1)}
    training_data = TrainingData(images, 2, config, options)
    seen, saved = [], []
    learned = learn_task(
        make_learner(vit_base, options, CPU),
        training_data,
        save=lambda state: saved.append(copy.deepcopy(state)),  # AdamW goes on with its tensors
        on_epoch=lambda epoch: seen.append(epoch.number),
    )
    assert seen == [0, 1, 2]
    assert [state.history[-1].number for state in saved] == [1, 2]
    assert set(learned.timings) == {"probe", "train"}
    probe = probe_network(make_learner(vit_base, options, CPU).model, training_data)
    assert all(torch.equal(one, other) for one, other in zip(probe.head, learned.state.probe.head, strict=True))
    again = learn_task(make_learner(vit_base, options, CPU), training_data, probe=probe)
    went_on = learn_task(make_learner(vit_base, options, CPU), training_data, state=saved[0])
    for other in (again, went_on):
        assert torch.equal(other.vector, learned.vector)
        assert torch.equal(other.head.weight, learned.head.weight)
    assert (learned.coefficients, learned.adapter_floats, learned.precision) == (48, 0, torch.float32)


def test_cross_fitted_coefficients_follow_the_head_that_does_not_know_the_image(vit_base, monkeypatch):
    monkeypatch.setattr("recast_cli.engine.adapt.loop.augment", lambda images, crops: images)
    options = AdaptOptions(epochs=1, batch_size=30, lr=1e-3, precision="float32", cross_fit=True)
    config, images = vit_base.known_architecture().preprocessing, {"train": drawn(30, 0), "val": drawn(6, 1)}
    learned = learn_task(make_learner(vit_base, options, CPU), TrainingData(images, 2, config, options))
    moved = torch.cat([value.reshape(-1) for value in learned.state.trained.values[:-2]]) - vit_base.vector
    learner, train = make_learner(vit_base, options, CPU), images["train"]
    found = features(learner.model, normalise(train.pixels, config))
    (weight, bias), folds = fit_judges(found.detach(), train.labels, learned.state.probe, options.seed)
    logits = torch.stack([weight[fold] @ each + bias[fold] for each, fold in zip(found, folds, strict=True)])
    loss = torch.nn.functional.cross_entropy(logits, train.labels)
    gradients = torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss, learner.coefficients)])
    clear = gradients.abs() > 1e-2 * gradients.abs().max()
    assert clear.sum() > 20
    torch.testing.assert_close(moved[clear], -1e-3 * gradients[clear].sign(), rtol=0.1, atol=0.0)  # AdamW's first step
