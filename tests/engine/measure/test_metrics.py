"""Accuracies against scikit-learn and against counting by hand."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score, top_k_accuracy_score

from recast_cli.engine.measure.metrics import confused_pairs, per_class, top_k

CLASSES = ["a", "b", "c", "d", "e", "f", "g"]


def draw(seed, count=50):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 7, generator=generator), torch.randint(0, 7, (count,), generator=generator)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k(seed, k):
    logits, labels = draw(seed)
    expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=range(7))
    assert top_k(logits, labels, k) == pytest.approx(expected)


def test_top_k_of_fewer_classes_than_k():
    logits, labels = draw(0)
    assert top_k(logits, labels, 7) == top_k(logits, labels, 9) == 1.0
    assert top_k(logits, labels) == pytest.approx(accuracy_score(labels, logits.argmax(1)))


def test_per_class_is_recall():
    logits, labels = draw(1)
    predicted = logits.argmax(1)
    expected = recall_score(labels, predicted, labels=range(7), average=None, zero_division=np.nan)
    assert per_class(predicted, labels, CLASSES) == pytest.approx(dict(zip(CLASSES, expected, strict=True)))


def test_a_class_without_images_has_no_accuracy():
    found = per_class(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2]), ["a", "b", "c"])
    assert found == {"a": 0.5, "b": None, "c": 1.0}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60), st.integers(1, 10))
def test_confused_pairs_are_the_most_frequent_mistakes(pairs, most):
    labels, predicted = torch.tensor(pairs).T
    found = confused_pairs(predicted, labels, CLASSES, most)
    counts = Counter((CLASSES[true], CLASSES[guess]) for true, guess in pairs if true != guess)
    assert all(counts[pair["true"], pair["predicted"]] == pair["images"] for pair in found)
    assert [pair["images"] for pair in found] == sorted(counts.values(), reverse=True)[:most]
    assert len({(pair["true"], pair["predicted"]) for pair in found}) == len(found)
