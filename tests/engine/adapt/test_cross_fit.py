"""Judges: which images they know, what they are, and what learns from whom."""

import pytest
import torch
from torch.nn import functional as F

from recast_cli.engine.adapt.cross_fit import FOLDS, Judges, cross_fitted, fit_judges, split_folds
from recast_cli.engine.adapt.linear_probe import Probe, solve_head
from recast_cli.engine.task.head import Head


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(60) % 4


def test_every_class_is_spread_over_all_folds_in_another_order_for_each_seed():
    folds = split_folds(LABELS, 0)
    assert torch.bincount(LABELS * FOLDS + folds).tolist() == [3] * 4 * FOLDS
    assert torch.equal(folds, split_folds(LABELS, 0))
    assert not torch.equal(folds, split_folds(LABELS, 1))


@pytest.mark.parametrize("class_weights", [None, torch.tensor([2.0, 1.0, 0.5, 1.0])])
def test_a_judge_is_the_probe_of_the_images_of_other_folds(class_weights):
    features = drawn(60, 5)
    probe = Probe(Head(torch.zeros(4, 5), torch.zeros(4)), 0.1, 0.5)
    judges = fit_judges(features, LABELS, probe, 0, class_weights)
    (weight, bias), folds = judges
    assert torch.equal(folds, split_folds(LABELS, 0))
    for fold in range(FOLDS):
        others = [place for place in range(60) if folds[place] != fold]
        wanted = solve_head(features[others], LABELS[others], 0.1, probe.head, class_weights)
        torch.testing.assert_close(weight[fold], wanted.weight)
        torch.testing.assert_close(bias[fold], wanted.bias)
    rows = torch.arange(60).flip(0)
    for row, logits in zip(rows, judges.logits(features[rows], rows), strict=True):
        one = weight[folds[row]] @ features[row] + bias[folds[row]]
        torch.testing.assert_close(logits, one, rtol=1e-4, atol=1e-5)


def test_features_learn_from_the_judge_that_does_not_know_them_and_judges_from_the_others():
    features = drawn(60, 5).requires_grad_()
    judges = Head(drawn(FOLDS, 4, 5, seed=1).requires_grad_(), drawn(FOLDS, 4, seed=2).requires_grad_())
    every = torch.arange(100) % FOLDS  # of more images than those that are in the batch
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(4))[:60]
    folds, shares = every[rows], torch.rand(60, generator=torch.Generator().manual_seed(3))
    loss = cross_fitted(Judges(judges, every), features, LABELS, shares, rows)
    found = torch.autograd.grad(loss, [features, *judges])

    def literal(place, fold):
        logits = judges.weight[fold] @ features[place] + judges.bias[fold]
        return F.cross_entropy(logits[None], LABELS[place : place + 1]) * shares[place]

    honest = sum(literal(place, int(folds[place])) for place in range(60))
    torch.testing.assert_close(loss, honest, rtol=1e-5, atol=1e-5)
    own = sum(literal(place, fold) for place in range(60) for fold in range(FOLDS) if fold != folds[place])
    wanted = torch.autograd.grad(honest, [features], retain_graph=True) + torch.autograd.grad(own, [*judges])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
