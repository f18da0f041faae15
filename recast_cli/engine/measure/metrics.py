"""Accuracies, as fractions from 0 to 1."""

from collections import Counter

from torch import Tensor


def top_k(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of rows of `logits` (N, classes) whose label is among the k largest; 1.0 where k >= classes."""
    k = min(k, logits.shape[1])
    hits = logits.topk(k, dim=1).indices == labels[:, None]
    return float(hits.any(1).double().mean())


def per_class(predicted: Tensor, labels: Tensor, classes: list[str]) -> dict[str, float | None]:
    """Top-1 of each class from predicted and true labels (N,); None for a class without images."""
    right = predicted == labels
    found = [right[labels == index] for index in range(len(classes))]
    return {name: float(own.double().mean()) if len(own) else None for name, own in zip(classes, found, strict=True)}


def confused_pairs(predicted: Tensor, labels: Tensor, classes: list[str], most: int = 5) -> list[dict[str, object]]:
    """The most frequent mistakes: true class, predicted class and how many images, the most frequent first."""
    pairs = zip(labels.tolist(), predicted.tolist(), strict=True)
    counts = Counter((true, guess) for true, guess in pairs if true != guess)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"true": classes[t], "predicted": classes[p], "images": n} for (t, p), n in ordered]
