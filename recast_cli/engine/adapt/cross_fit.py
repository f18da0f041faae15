"""Judges: heads that judge images which they were not fitted to.

A head leaves little loss on images that it was fitted to, and the gradient of that little says nothing of new images.
So the images are cut in K folds, and a judge is fitted to all but one of them: what the network is changed by is the
loss of every image at the judge that does not know it (cross-fitting, https://arxiv.org/abs/1608.00060).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recast_cli.engine.adapt.linear_probe import Probe, solve_head
from recast_cli.engine.task.head import Head

FOLDS = 5


class Judges(NamedTuple):
    """A head for every fold: weight (FOLDS, classes, D), bias (FOLDS, classes); and the fold of every image, (N,)."""

    heads: Head
    folds: Tensor

    def all_logits(self, features: Tensor) -> Tensor:
        """Of features (B, D) by every judge, (B, FOLDS, classes)."""
        return torch.einsum("kcd,bd->bkc", self.heads.weight, features) + self.heads.bias

    def logits(self, features: Tensor, rows: Tensor) -> Tensor:
        """Of features (B, D) of the images `rows` (B,), each by the judge that does not know it, (B, classes)."""
        every = self.all_logits(features)
        return every.take_along_dim(self.folds[rows][:, None, None], 1)[:, 0]

    def trainable(self, device: torch.device) -> "Judges":
        """Their copies on a device, as parameters."""
        return Judges(Head(*(nn.Parameter(part.to(device, copy=True)) for part in self.heads)), self.folds.to(device))


def split_folds(labels: Tensor, seed: int) -> Tensor:
    """The fold of every image, (N,): each class is spread over all of them."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    return torch.empty_like(order).index_copy_(0, by_class, torch.arange(len(labels)) % FOLDS)


def fit_judges(
    features: Tensor, labels: Tensor, probe: Probe, seed: int, class_weights: Tensor | None = None
) -> Judges:
    """Judges of images with features (N, D) and labels (N,), fitted with the probe's penalty."""
    folds = split_folds(labels, seed)
    heads = [
        solve_head(features[folds != fold], labels[folds != fold], probe.penalty, probe.head, class_weights)
        for fold in range(FOLDS)
    ]
    return Judges(Head(*map(torch.stack, zip(*heads, strict=True))), folds)


def cross_fitted(judges: Judges, features: Tensor, labels: Tensor, shares: Tensor, rows: Tensor) -> Tensor:
    """The loss of some images at the judges that do not know them, which changes nothing but the features.

    The judges' own training goes along: at features that it does not change, and adding nothing to the value.

    Args:
        judges: Of all training images.
        features: (B, D).
        labels: (B,).
        shares: (B,), what an image counts.
        rows: (B,), which of the training images they are.
    """
    fixed = judges._replace(heads=Head(*(part.detach() for part in judges.heads)))
    honest = (F.cross_entropy(fixed.logits(features, rows), labels, reduction="none") * shares).sum()
    logits = judges.all_logits(features.detach())
    known = judges.folds[rows][:, None] != torch.arange(FOLDS, device=rows.device)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(FOLDS), reduction="none").view_as(known)
    own = (losses * known * shares[:, None]).sum()
    return honest + own - own.detach()
