"""Where a task puts its coefficients: at the entries that lower the loss most, as one pass over its images sees it.

Before anything is trained, with every image at the judge that does not know it: an entry's mean gradient g says how
fast the loss falls, the mean square F of an image's gradient how soon it rises again.
"""

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from recast_cli.engine.adapt.cross_fit import Judges
from recast_cli.engine.adapt.importance import gradients
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.model.entries import Entries, unit_of, vector_of
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.precision import quick_attention, training_precision

MOST_IMAGES, KEPT_IMAGES = 1024, 256
"""Training images that choose, at most, and those of them that say how far all chosen entries may move at once."""
DAMPING = 0.9
"""The quantile of F that is added to all of them."""
LONGEST = 5.0
"""A unit, at most, in root mean squares of its vector. Where a head is nearly perfect the gradients say next to nothing
of the curvature, and units by them alone grew until the loss was no longer finite."""


def choose_places(entries: Entries, training_data: TrainingData, judges: Judges) -> tuple[Tensor, Tensor, Tensor]:
    """The most promising entries, best first, the same in every process.

    Args:
        entries: Not yet chosen, in their network.
        training_data: What is learned; its validation images are not looked at.
        judges: Of the training images, on the network's device.

    Returns:
        Places (k, 2) int32; the units (k,) that they are moved in: u / sqrt(F + d) of `promises`, divided by the
        fourth root of L, the loss's largest curvature in them as far as the gradients know its Hessian (the empirical
        Fisher matrix), and at most LONGEST u, so that one learning rate serves few entries and many, which add up; and
        the root mean square norm, (), of an image's gradient in these units, which no batch should exceed.
    """

    def choose() -> tuple[Tensor, Tensor, Tensor]:
        scores, units, kept = promises(entries, training_data, judges)
        places = best(scores, len(entries.steps))
        own = torch.stack([units[number][entry] for number, entry in places.tolist()])
        rows = torch.stack([kept[number][:, entry] for number, entry in places.tolist()], 1)
        own = own / torch.linalg.matrix_norm((rows * own).double(), 2).clamp_min(1).sqrt().float()
        longest = LONGEST * torch.tensor([unit_of(vector_of(entries.model, name)) for name in entries.names])
        own = own.minimum(longest[places[:, 0].long()])
        return places, own, (rows * own).norm()

    return distributed.from_first(choose)


def promises(
    entries: Entries, training_data: TrainingData, judges: Judges
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What every entry promises by `options.statistic`, the unit that it is moved in, and gradients of some images.

    Of each vector (n,): (n,), (n,), and (images, n) without units, each times the root of the image's weight.

    With g and F of an entry in units of its vector's root mean square u, and d the damping, a quantile of all F:

    * `damped`: g² / (F + d), twice what a step of the damped natural gradient gains.
    * `natural`: g² / F, the same without damping.
    * `size`: |g|.

    A step of one unit is to change the loss alike wherever it is made: the unit is u / sqrt(F + d).
    """
    model, options, device = entries.model, training_data.options, entries.steps.device
    dtype = training_precision(model, device, options.precision)
    vectors = [vector_of(model, name) for name in entries.names]
    means, squares = ([torch.zeros_like(vector) for vector in vectors] for _ in range(2))
    kept: list[list[Tensor]] = [[] for _ in vectors]
    weights: list[float] = []
    # the layout's coefficients stand still meanwhile, so a weight is mixed once
    with parametrize.cached(), quick_attention(model, device, dtype):
        for weight, found in gradients(
            model,
            vectors,
            training_data.images["train"],
            lambda features, rows: judges.logits(features, rows.to(device)),
            training_data.preprocessing,
            MOST_IMAGES,
            options.seed,
            size=1,
            class_weights=training_data.class_weights,
            dtype=dtype,
        ):
            for mean, square, gradient in zip(means, squares, found, strict=True):
                mean.add_(gradient, alpha=weight)
                square.addcmul_(gradient, gradient, value=weight)
            if len(weights) < KEPT_IMAGES:
                weights.append(weight)
                for rows, gradient in zip(kept, found, strict=True):
                    rows.append(gradient.cpu() * weight**0.5)
    root_mean_squares = [unit_of(vector) for vector in vectors]
    g = [mean.cpu() * unit for mean, unit in zip(means, root_mean_squares, strict=True)]
    f = [square.cpu() * unit**2 for square, unit in zip(squares, root_mean_squares, strict=True)]
    every = torch.cat(f).sort().values
    damping = every[int(DAMPING * (len(every) - 1))].clamp_min(1e-30)
    units = [unit * (own + damping).rsqrt() for own, unit in zip(f, root_mean_squares, strict=True)]
    if options.statistic == "size":
        scores = [gradient.abs() for gradient in g]
    else:
        added = damping if options.statistic == "damped" else torch.tensor(1e-30)
        scores = [gradient.square() / (own + added) for gradient, own in zip(g, f, strict=True)]
    if options.dictionary in ("gains", "biases"):
        wanted = [name.endswith("bias") == (options.dictionary == "biases") for name in entries.names]
        scores = [score if own else torch.full_like(score, -1) for score, own in zip(scores, wanted, strict=True)]
    return scores, units, [torch.stack(rows) / sum(weights) ** 0.5 for rows in kept]


def best(scores: list[Tensor], count: int) -> Tensor:
    """The `count` largest scores as (vector, entry), largest first: (count, 2) int32; of equal ones the first."""
    flat = torch.cat(scores)
    order = flat.sort(descending=True, stable=True).indices[:count]
    sizes = torch.tensor([len(each) for each in scores])
    starts = sizes.cumsum(0) - sizes
    numbers = torch.searchsorted(starts, order, right=True) - 1
    return torch.stack([numbers, order - starts[numbers]], 1).to(torch.int32)
