"""The head that a task ends with: half trained, half solved for the network that was trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.adapt.fit import refit_head
from recast_cli.engine.adapt.linear_probe import Probe, fit_probe
from recast_cli.engine.adapt.state import Epoch, State, Trained
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.splits import split_folder
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.model.attach import merge
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions

pytestmark = pytest.mark.slow


def rows(count, seed):
    """Features that tell their labels in part."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.randn(count, 6, generator=generator) + torch.eye(3, 6)[labels], labels


def test_the_final_head_is_the_mean_of_the_trained_and_the_solved_one():
    train, val = rows(90, 0), rows(60, 1)
    values, weight = [torch.full((1, 1), 2.0)], torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    trained = Trained(values, Head(weight, torch.zeros(3)))
    history = [Epoch(0, None, 0.4), Epoch(1, 0.5, 0.3)]
    state = State(trained, trained, Probe(trained.head, 0.1, 0.4), 1, history=history)
    after = refit_head(state, train, val, None)
    assert after.best.values == values
    final = after.best.head
    scaler = StandardScaler().fit(train[0].numpy())
    penalty = fit_probe(train, val, 3).penalty
    regression = LogisticRegression(C=1 / (len(train[1]) * penalty), tol=1e-10, max_iter=10000)
    regression.fit(scaler.transform(train[0].numpy()), train[1].numpy())
    scores = regression.decision_function(scaler.transform(val[0].numpy()))
    ours = 2 * (val[0] @ final.weight.T + final.bias) - val[0] @ weight.T
    # a constant added to all classes is nothing to a softmax
    centred = [each - each.mean(1, keepdims=True) for each in (ours.double().numpy(), scores)]
    np.testing.assert_allclose(*centred, atol=1e-3)
    right = (val[0] @ final.weight.T + final.bias).argmax(1) == val[1]
    assert after.val_top1 == pytest.approx(float(right.float().mean()))
    assert state.val_top1 == 0.3


@pytest.fixture
def states(monkeypatch):
    """What a run has come to after each epoch, of which the third is worse than the others."""
    found, accuracies = [], iter([1.0, 1.0, 0.1])
    monkeypatch.setattr("recast_cli.engine.adapt.loop.top_k", lambda logits, labels: next(accuracies))
    monkeypatch.setattr(
        "recast_cli.engine.adapt.resume.save_state", lambda folder, identity, state: found.append(state)
    )
    return found


def test_adapt_solves_for_the_adapted_network(vit_base, data, tmp_path, states):
    options = AdaptOptions(epochs=3, precision="float32")
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", options, device="cpu")
    coefficients, (weight, bias) = states[1].trained
    assert not torch.equal(states[2].trained.values[0], coefficients[0])  # the last epoch, which is not the chosen one
    assert torch.equal(task.vector, torch.cat([each.flatten() for each in coefficients]))
    assert not torch.equal(task.vector, vit_base.vector)
    split, config = split_folder(data, 0, False), vit_base.known_architecture().preprocessing
    model, seen = merge(vit_base, task.vector), {}
    for part in ("train", "val"):
        images = decode(data, getattr(split, part), config)
        with torch.no_grad():
            seen[part] = features(model, normalise(images.pixels, config)), images.labels
    solved = fit_probe(seen["train"], seen["val"], 3)
    torch.testing.assert_close(task.weight, (weight + solved.head.weight) / 2, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(task.bias, (bias + solved.head.bias) / 2, atol=1e-3, rtol=1e-3)
    right = (seen["val"][0] @ task.weight.T + task.bias).argmax(1) == seen["val"][1]
    assert task.record["metrics"]["val_top1"] == pytest.approx(float(right.float().mean()))


def test_the_paper_s_recipe_keeps_the_head_that_it_trained(vit_base, data, tmp_path, states):
    options = AdaptOptions(recipe="paper", epochs=2, precision="float32")
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", options, device="cpu")
    assert torch.equal(task.weight, states[1].trained.head.weight)
    assert torch.equal(task.bias, states[1].trained.head.bias)


def test_where_the_final_head_is_worse_than_the_probe_it_is_the_probe(vit_base, data, tmp_path, states, monkeypatch):
    def worse(state, *given):
        return replace(refit_head(state, *given), final_val_top1=0.0)

    monkeypatch.setattr("recast_cli.engine.adapt.fit.refit_head", worse)
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", AdaptOptions(epochs=3, precision="float32"))
    metrics = task.record["metrics"]
    assert states[-1].best_epoch == 2
    assert (metrics["best_epoch"], metrics["val_top1"]) == (0, metrics["linear_probe_val_top1"])
    assert metrics["test_top1"] == metrics["linear_probe_test_top1"]
    assert torch.equal(task.vector, vit_base.vector)
    assert torch.equal(task.weight, states[0].probe.head.weight)
