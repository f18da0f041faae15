"""Accuracies, as fractions from 0 to 1."""

from torch import Tensor


def top_k(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of rows of `logits` (N, classes) whose label is among the k largest; 1.0 where k >= classes."""
    k = min(k, logits.shape[1])
    hits = logits.topk(k, dim=1).indices == labels[:, None]
    return float(hits.any(1).double().mean())


def per_class(predicted: Tensor, labels: Tensor, classes: list[str]) -> dict[str, float | None]:
    """Top-1 of each class from predicted and true labels (N,); None for a class without images."""
    result: dict[str, float | None] = {}
    for index, name in enumerate(classes):
        mine = labels == index
        result[name] = float((predicted[mine] == index).double().mean()) if mine.any() else None
    return result


def confused_pairs(predicted: Tensor, labels: Tensor, classes: list[str], most: int = 5) -> list[dict[str, object]]:
    """The most frequent mistakes: true class, predicted class and how many images, the most frequent first."""
    counts: dict[tuple[int, int], int] = {}
    for true, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        if true != guess:
            counts[true, guess] = counts.get((true, guess), 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"true": classes[t], "predicted": classes[p], "images": n} for (t, p), n in ordered]
