"""Judges: heads that judge images which they were not fitted to.

A head leaves little loss on images that it was fitted to, and the gradient of that little says nothing of new images.
So the images are cut in K folds, and a judge is fitted to all but one of them: what the network is changed by is the
loss of every image at the judge that does not know it (cross-fitting, https://arxiv.org/abs/1608.00060).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.adapt.linear_probe import Probe, solve_head
from recast_cli.engine.task.head import Head

FOLDS = 5


def split_folds(labels: Tensor, seed: int) -> Tensor:
    """The fold of every image, (N,): each class is spread over all of them."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    return torch.empty_like(order).index_copy_(0, by_class, torch.arange(len(labels)) % FOLDS)


def fit_judges(
    features: Tensor, labels: Tensor, folds: Tensor, probe: Probe, class_weights: Tensor | None = None
) -> Head:
    """The judge of every fold, with the probe's penalty: weight (FOLDS, classes, D) and bias (FOLDS, classes)."""
    judges = [
        solve_head(features[folds != fold], labels[folds != fold], probe.penalty, probe.head, class_weights)
        for fold in range(FOLDS)
    ]
    return Head(*map(torch.stack, zip(*judges, strict=True)))


def judged(judges: Head, features: Tensor, folds: Tensor) -> Tensor:
    """Logits (B, classes) of features (B, D), each by the judge of its own fold, (B,)."""
    return every_judge(judges, features)[torch.arange(len(folds), device=folds.device), folds]


def every_judge(judges: Head, features: Tensor) -> Tensor:
    """Logits (B, FOLDS, classes) of features (B, D)."""
    return torch.einsum("kcd,bd->bkc", judges.weight, features) + judges.bias


def cross_fitted(judges: Head, features: Tensor, labels: Tensor, shares: Tensor, folds: Tensor) -> Tensor:
    """The loss of some images at the judges that do not know them, which changes nothing but the features.

    The judges' own training goes along: at features that it does not change, and adding nothing to the value.

    Args:
        judges: From `fit_judges`.
        features: (B, D).
        labels: (B,).
        shares: (B,), what an image counts.
        folds: (B,).
    """
    fixed = Head(*(part.detach() for part in judges))
    honest = (F.cross_entropy(judged(fixed, features, folds), labels, reduction="none") * shares).sum()
    logits = every_judge(judges, features.detach())
    known = folds[:, None] != torch.arange(FOLDS, device=folds.device)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(FOLDS), reduction="none").view_as(known)
    own = (losses * known * shares[:, None]).sum()
    return honest + own - own.detach()
