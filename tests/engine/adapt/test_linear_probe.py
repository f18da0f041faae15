"""The linear probe against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from recast_cli.engine.adapt import linear_probe as probe_module
from recast_cli.engine.adapt.linear_probe import LIMITS, fit_probe, logistic_regression, solve_head, standardised
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.images.decode import Images
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions


def draw(count, seed, classes=3, features=6, spread=1.0, uneven=False):
    """Features on very different scales, and labels that depend on them with some noise."""
    generator = np.random.default_rng(seed)
    share = np.array([0.7, 0.2, 0.1][:classes]) if uneven else np.full(classes, 1 / classes)
    labels = generator.choice(classes, count, p=share)
    centres = np.random.default_rng(99).normal(size=(classes, features))
    points = centres[labels] + spread * generator.normal(size=(count, features))
    points = points * 10.0 ** np.arange(-2, features - 2) + 3
    return torch.from_numpy(points).float(), torch.from_numpy(labels)


def class_weights(labels, options):
    """As training data of three classes has them."""
    return TrainingData({"train": Images(torch.empty(0), labels, [], [])}, 3, {}, options).class_weights


def by_sklearn(features, labels, penalty, class_weight=None):
    """Pipeline of scaler and regression: mean loss + penalty/2 |W|^2 is C = 1/(N * penalty)."""
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=1 / (len(labels) * penalty), tol=1e-10, max_iter=10000, class_weight=class_weight)
    model.fit(scaler.transform(features), labels)
    return lambda points: model.predict_proba(scaler.transform(points))


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 1e-1, 1.0])
def test_one_regression_gives_sklearns_probabilities(penalty):
    features, labels = draw(120, 0)
    scaled = torch.from_numpy(StandardScaler().fit_transform(features.double().numpy()))
    found = logistic_regression(scaled, labels, penalty, torch.zeros(3, 7).double())
    probabilities = (scaled @ found[:, :-1].T + found[:, -1]).softmax(1).numpy()
    expected = by_sklearn(features.double().numpy(), labels.numpy(), penalty)(features.double().numpy())
    np.testing.assert_allclose(probabilities, expected, atol=1e-3)


def test_the_probe_is_sklearn_at_the_chosen_penalty():
    train, val = draw(150, 0), draw(80, 1)
    probe = fit_probe(train, val, 3)
    found = (val[0].double() @ probe.head.weight.double().T + probe.head.bias.double()).softmax(1).numpy()
    predict = by_sklearn(train[0].double().numpy(), train[1].numpy(), probe.penalty)
    expected = predict(val[0].double().numpy())
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert probe.val_top1 == pytest.approx((expected.argmax(1) == val[1].numpy()).mean())
    assert probe.head.weight.dtype == probe.head.bias.dtype == torch.float32


@pytest.mark.parametrize("balanced", [False, True])
def test_a_head_with_a_known_penalty_is_sklearn_s_wherever_it_starts(balanced):
    features, labels = draw(150, 0, uneven=balanced)
    options = AdaptOptions(class_weights="balanced" if balanced else "none")
    weights = class_weights(labels, options)
    start = Head(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -2.0, 0.5]))
    weight, bias = solve_head(features, labels, 0.03, start, weights)
    found = (features.double() @ weight.double().T + bias.double()).softmax(1).numpy()
    per_class = None if weights is None else dict(enumerate(weights.tolist()))
    predict = by_sklearn(features.double().numpy(), labels.numpy(), 0.03, per_class)
    np.testing.assert_allclose(found, predict(features.double().numpy()), atol=2e-3)


def test_a_head_for_features_is_one_for_standardised_features_and_back():
    features, _ = draw(40, 0)
    features[:, 2] = 7.0  # varies as little as can be
    weight, bias = torch.randn(3, 6), torch.randn(3)
    scaled, scaling = standardised(features)
    solution = scaling.from_head(Head(weight, bias))
    wanted = features.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(scaled @ solution[:, :-1].T + solution[:, -1], wanted)
    for found, given in zip(scaling.to_head(solution), (weight, bias), strict=True):
        torch.testing.assert_close(found, given)


def quality(train, val, penalty):
    """Accuracy on validation, and where that ties the lower loss, by scikit-learn."""
    probabilities = by_sklearn(train[0].double().numpy(), train[1].numpy(), penalty)(val[0].double().numpy())
    return (probabilities.argmax(1) == val[1].numpy()).mean(), -log_loss(val[1], probabilities)


@pytest.mark.parametrize("seed", range(4))
def test_the_neighbours_of_the_chosen_penalty_are_not_better(seed):
    train, val = draw(60, seed, spread=2.0), draw(60, seed + 10, spread=2.0)
    chosen = fit_probe(train, val, 3).penalty
    best = quality(train, val, chosen)
    for factor in (0.1, 10.0):
        assert quality(train, val, chosen * factor) <= (best[0], best[1] + 1e-6)


@pytest.mark.parametrize("spread", [0.01, 0.5, 2.0, 8.0, 40.0])
def test_no_end_of_the_grid_is_chosen_but_at_its_limits(spread, monkeypatch):
    tried = []

    def spy(features, labels, penalty, *rest):
        tried.append(penalty)
        return logistic_regression(features, labels, penalty, *rest)

    monkeypatch.setattr(probe_module, "logistic_regression", spy)
    train, val = draw(60, 5, spread=spread), draw(40, 6, spread=spread)
    chosen = fit_probe(train, val, 3).penalty
    assert chosen in tried
    inside = min(tried) < chosen < max(tried)
    at_limit = round(np.log10(chosen)) in LIMITS
    assert inside or at_limit, (chosen, tried)
    assert len(tried) == len(set(tried))


def test_class_weights_are_sklearns_balanced_ones():
    train, val = draw(150, 0, uneven=True, spread=2.0), draw(60, 1, spread=2.0)
    weights = class_weights(train[1], AdaptOptions(class_weights="balanced"))
    assert class_weights(train[1], AdaptOptions()) is None
    counts = np.bincount(train[1].numpy())
    np.testing.assert_allclose(weights.numpy(), len(train[1]) / (3 * counts), rtol=1e-6)
    probe = fit_probe(train, val, 3, weights)
    found = (val[0].double() @ probe.head.weight.double().T + probe.head.bias.double()).softmax(1).numpy()
    predict = by_sklearn(train[0].double().numpy(), train[1].numpy(), probe.penalty, "balanced")
    np.testing.assert_allclose(found, predict(val[0].double().numpy()), atol=2e-3)
    plain = fit_probe(train, val, 3)
    assert not torch.allclose(plain.head.bias, probe.head.bias, atol=1e-2)


def test_a_feature_that_never_changes_does_no_harm():
    (features, labels), val = draw(60, 0), draw(30, 1)
    padded = torch.cat([features, torch.full((60, 1), 5.0)], dim=1)
    probe = fit_probe((padded, labels), (torch.cat([val[0], torch.full((30, 1), 5.0)], dim=1), val[1]), 3)
    assert torch.isfinite(probe.head.weight).all()
    assert probe.val_top1 == fit_probe((features, labels), val, 3).val_top1


def test_a_class_that_train_lacks_is_never_predicted():
    features, labels = draw(60, 0, classes=2)
    probe = fit_probe((features, labels), draw(30, 1, classes=2), 3)
    logits = features @ probe.head.weight.T + probe.head.bias
    assert torch.isfinite(logits).all()
    assert set(logits.argmax(1).tolist()) <= {0, 1}
