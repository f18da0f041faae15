"""The head solved once more on the features of the best epoch."""

from dataclasses import replace

import pytest
import torch

from recast_cli.engine import train
from recast_cli.engine.adapt import adapt
from recast_cli.engine.attach import merge
from recast_cli.engine.images import decode, normalise
from recast_cli.engine.learn import refit
from recast_cli.engine.network import features
from recast_cli.engine.options import AdaptOptions
from recast_cli.engine.probe import Probe, fit_probe
from recast_cli.engine.splits import split_folder
from recast_cli.engine.state import Epoch, State

PROBE = Probe(torch.ones(3, 4), torch.ones(3), 0.1, 0.8)


def state(best_epoch, *accuracies):
    values = [torch.full((1, 1), 2.0), torch.zeros(3, 4), torch.zeros(3)]
    history = [Epoch(number, None, accuracy) for number, accuracy in enumerate(accuracies)]
    return State([value + 1 for value in values], values, (values[1], values[2]), 0.5, 0.1, best_epoch, history=history)


@pytest.mark.parametrize(("accuracy", "kept"), [(0.7, True), (0.8, False), (0.9, False)])
def test_the_solved_head_is_kept_where_validation_is_better(accuracy, kept):
    coefficient = torch.nn.Parameter(torch.full((1, 1), 3.0))
    before = state(1, 0.6, accuracy)

    def solve():
        assert coefficient.item() == 2.0  # the best epoch's, not the last one's
        return PROBE

    after = refit([coefficient], before, solve)
    assert torch.equal(after.best[0], before.best[0])
    assert torch.equal(after.best[-2], PROBE.weight if kept else before.best[-2])
    assert torch.equal(after.best[-1], PROBE.bias if kept else before.best[-1])
    assert after.val_top1 == (0.8 if kept else accuracy)


@pytest.mark.parametrize(("accuracy", "kept"), [(0.7, True), (0.8, False)])
def test_where_no_epoch_beat_the_probe_the_last_one_s_features_are_tried(accuracy, kept):
    coefficient = torch.nn.Parameter(torch.ones(1, 1))
    before = state(0, accuracy, 0.5, 0.6)

    def solve():
        assert coefficient.item() == 3.0
        return PROBE

    after = refit([coefficient], before, solve)
    if not kept:
        assert after is before
        return
    assert (after.best_epoch, after.val_top1) == (2, 0.8)
    assert [float(tensor.flatten()[0]) for tensor in after.best] == [3.0, 1.0, 1.0]


def test_adapt_solves_on_the_features_of_the_adapted_network(vit_base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "top_k", lambda logits, labels: 0.01)  # any solved head is better than that
    monkeypatch.setattr(train, "advance", taking_every_epoch_for_the_best(train.advance))
    options = AdaptOptions(epochs=2, precision="float32")
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", options, device="cpu")
    assert task.record["metrics"]["head"] == "refitted"
    split, config = split_folder(data, 0, False), vit_base.known_architecture().data
    model, rows = merge(vit_base, task.vector), {}
    for part in ("train", "val"):
        images = decode(data, getattr(split, part), config)
        with torch.no_grad():
            rows[part] = features(model, normalise(images.pixels, config)), images.labels
    expected = fit_probe(rows["train"], rows["val"], 3)
    torch.testing.assert_close(task.weight, expected.weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(task.bias, expected.bias, atol=1e-3, rtol=1e-3)
    assert task.record["metrics"]["val_top1"] == expected.val_top1
    assert not torch.equal(task.vector, vit_base.vector)


def taking_every_epoch_for_the_best(advance):
    def advanced(*args):
        after = advance(*args)
        return replace(after, best=after.trained, best_epoch=after.history[-1].number)

    return advanced
