"""Where a task puts its coefficients: at the entries that lower the loss most, as one pass over its images sees it.

At the linear probe's head, before anything is trained, entry j of a vector promises |g_j| u: its mean gradient times
the step that one learning rate makes of it, u, the vector's root mean square.
"""

import torch
from torch import Tensor

from recast_cli.engine.adapt.importance import SIZE, gradients
from recast_cli.engine.adapt.loop import TrainingData
from recast_cli.engine.model.entries import Entries, vector_of
from recast_cli.engine.runtime import distributed
from recast_cli.engine.runtime.precision import quick_attention, training_precision
from recast_cli.engine.task.head import Head

MOST_IMAGES = 4096
"""Training images that choose, at most."""


def choose_places(entries: Entries, training_data: TrainingData, head: Head) -> Tensor:
    """The places of the most promising entries, best first: (k, 2) int32, the same in every process.

    Args:
        entries: Not yet chosen, in their network.
        training_data: What is learned; its validation images are not looked at.
        head: The linear probe's.
    """
    return distributed.from_first(lambda: best(promises(entries, training_data, head), len(entries.steps)))


def promises(entries: Entries, training_data: TrainingData, head: Head) -> list[Tensor]:
    """What every entry promises by `options.statistic`, vector by vector of the dictionary.

    With g the mean gradient, v the variance of an image's gradient, N images and u the unit:

    * `size`: |g| u.
    * `shrunk`: (|g| - s)+ u, s = sqrt(v / N) the standard error of g.
    * `natural`: g^2 / (v + g^2), what a natural step of an entry's own gains, twice.
    """
    model, options, device = entries.model, training_data.options, entries.steps.device
    dtype = training_precision(model, device, options.precision)
    vectors = [vector_of(model, name) for name in entries.names]
    means, squares = ([torch.zeros_like(vector) for vector in vectors] for _ in range(2))
    found = gradients(
        model,
        vectors,
        training_data.images["train"],
        head,
        training_data.preprocessing,
        MOST_IMAGES,
        options.seed,
        training_data.class_weights,
        dtype,
    )
    count = 0
    with quick_attention(model, device, dtype):
        for weight, batch in found:
            count += 1
            for mean, square, gradient in zip(means, squares, batch, strict=True):
                mean.add_(gradient, alpha=weight)
                square.addcmul_(gradient, gradient, value=weight)
    scores = []
    for mean, square, unit in zip(means, squares, entries.units, strict=True):
        size, spread = mean.abs().cpu(), (square - mean.square()).clamp_min(0).cpu()  # of the mean of a batch
        if options.statistic == "natural":
            scores.append(size.square() / (SIZE * spread + size.square()).clamp_min(1e-30))
        elif options.statistic == "shrunk":
            scores.append((size - (spread / max(count - 1, 1)).sqrt()).clamp_min(0) * unit)
        else:
            scores.append(size * unit)
    if options.dictionary == "all":
        return scores
    wanted = [name.endswith("bias") == (options.dictionary == "biases") for name in entries.names]
    return [score if own else torch.full_like(score, -1) for score, own in zip(scores, wanted, strict=True)]


def best(scores: list[Tensor], count: int) -> Tensor:
    """The `count` largest scores as (vector, entry), largest first: (count, 2) int32; of equal ones the first."""
    flat = torch.cat(scores)
    order = flat.sort(descending=True, stable=True).indices[:count]
    sizes = torch.tensor([len(each) for each in scores])
    starts = sizes.cumsum(0) - sizes
    numbers = torch.searchsorted(starts, order, right=True) - 1
    return torch.stack([numbers, order - starts[numbers]], 1).to(torch.int32)
