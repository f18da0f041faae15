"""Everything rounded so that the file takes no more than so many bytes, and hardly less."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from recast_cli.engine.base.codec.code import Code, Deflated, Encode, round_to_nearest
from recast_cli.engine.base.codec.deflate import deflate
from recast_cli.engine.base.codec.trellis import AT_ONCE, LARGEST_CODE
from recast_cli.engine.errors import RecastError
from recast_cli.engine.mimic.compress.fisher import Curvature
from recast_cli.engine.mimic.compress.matrices import is_large, matrices, matrices_of
from recast_cli.engine.mimic.compress.plan import Compression
from recast_cli.engine.mimic.compress.rounding import steps_of, to_steps
from recast_cli.engine.progress import Progress

FEWEST = 1.5
"""Bits a value that a size must leave: with less, most of a network is lost."""
SAMPLE = 2**17
"""Values of a tensor that its bytes are told from before it is rounded."""
NEAR = 0.001
"""Of the bytes that are wanted: to be so much below is near enough."""
ATTEMPTS = 4
"""At rounding everything, to come so near."""
Tried = dict[bool, tuple[float, float]]
"""Whether bytes were too many -> the power of two of such a step, and the excess."""


class Sample(NamedTuple):
    """What a tensor's bytes are told from before it is rounded.

    Attributes:
        shape: The tensor's.
        values: Some of its values over their steps, before those are scaled.
        share: Values of the tensor for each of them.
        beside: Bytes of what makes its steps.
    """

    shape: tuple[int, ...]
    values: Tensor
    share: float
    beside: int


@dataclass(frozen=True)
class Job:
    """What is to be rounded to a size.

    Attributes:
        tensors: Reads all tensors of the base but its coefficients, one at a time, whenever it is called.
        small: Codes of those that are not rounded.
        curves: What errors of large tensors do, where that is known.
        plan: The plan that codes make.
        keep: Whether there is memory for all that is stored.
        kept: What is stored of each tensor that was rounded last, where there is.
    """

    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    small: Mapping[str, Code]
    curves: Mapping[str, Curvature]
    plan: Callable[[Mapping[str, Code]], Compression]
    keep: bool
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def large(self) -> Iterator[tuple[str, Tensor]]:
        """Those that are rounded."""
        return ((name, tensor) for name, tensor in self.tensors() if is_large(tensor.shape))

    def foreseen(self, samples: Mapping[str, Sample], step: float | None) -> Compression:
        """The plan as samples tell it; without a step, that of `FEWEST` bits."""
        codes = dict(self.small)
        for name, each in samples.items():
            stream = FEWEST * prod(each.shape) / 8
            if step is not None:  # codes of a trellis spread as the nearest integers do
                nearest = (each.values / step).round().clamp(-LARGEST_CODE, LARGEST_CODE)
                stream = each.share * len(deflate(nearest)[0])
            codes[name] = Deflated(each.shape, matrices(name, each.shape), int(each.beside + stream), 0, step or 1.0)
        return self.plan(codes)

    def rounded(self, step: float, count: int, progress: Progress | None) -> Compression:
        """The plan once everything, `count` tensors, is rounded with a step."""
        codes = dict(self.small)
        done = 0
        for several in self.together():
            for name, (code, stored) in to_steps(several, step, self.curves).items():
                codes[name] = code
                if self.keep:
                    self.kept[name] = stored
            done += len(several)
            if progress:
                progress(done, count, f"rounding {name}")
        return self.plan(codes)

    def together(self) -> Iterator[dict[str, Tensor]]:
        """Those that are rounded, a few of one size at a time where errors are fed back in calls for every column."""
        waiting: dict[tuple[torch.Size, ...], dict[str, Tensor]] = {}
        for name, tensor in self.large():
            curve = self.curves.get(name)
            if curve is None:
                yield {name: tensor}
                continue
            key = curve.rows.shape[1:], curve.columns.shape[1:]
            several = waiting.setdefault(key, {})
            several[name] = tensor
            if sum(each.numel() for each in several.values()) + tensor.numel() > AT_ONCE:
                yield waiting.pop(key)
        yield from waiting.values()


def fit(
    job: Job,
    size: int,
    announce: Callable[[Compression], None] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Code], Encode]:
    """The code of every tensor, so that the file takes at most `size` bytes, and what encodes them.

    `announce` is called with the plan as it is foreseen, before anything is rounded; `progress` after every tensor.

    Raises:
        RecastError: No file is as small.
    """
    samples = {name: take(name, tensor, job.curves.get(name)) for name, tensor in job.large()}
    values = sum(prod(each.shape) for each in samples.values())
    least = job.foreseen(samples, None)
    if least.nbytes > size:
        raise RecastError(
            f"{size:,} bytes are too few: the smallest base of this source and layout takes {least.nbytes:,} "
            f"({least.ratio:.1f}x)",
            "Ask for no less; most of a network is lost there already.",
        )
    # a little less, so that rounding everything once will mostly do
    wanted = size - max(8, 1.5 * NEAR * size)
    step = search_step(lambda step: job.foreseen(samples, step).nbytes - wanted, values, NEAR * size / 4)
    if announce:
        announce(job.foreseen(samples, step))
    tried: Tried = {}
    for attempt in itertools.count(1):
        plan = job.rounded(step, len(samples), progress)
        excess = plan.nbytes - size
        if excess <= 0 and (excess >= -3 * NEAR * size or attempt >= ATTEMPTS):
            break
        step = 2 ** better_power(math.log2(step), plan.nbytes - wanted, values, tried)

    def encode(name: str, tensor: Tensor, code: Code) -> dict[str, Tensor]:
        if not isinstance(code, Deflated):
            return round_to_nearest(name, tensor, code)
        return job.kept.get(name) or to_steps({name: tensor}, step, job.curves)[name][1]

    return plan.codes, encode


def take(name: str, tensor: Tensor, curvature: Curvature | None) -> Sample:
    """Evenly spaced values of a tensor over their steps."""
    weights = matrices_of(name, tensor)
    steps = steps_of(weights, curvature)
    values = (weights / steps.spread()).reshape(-1)
    chosen = values[:: (len(values) // SAMPLE) | 1].clone()  # an odd stride goes through all columns
    return Sample(tuple(tensor.shape), chosen, len(values) / len(chosen), len(deflate(steps.flat())[0]))


def search_step(excess: Callable[[float], float], values: int, near: float) -> float:
    """The step of which `excess`, in bytes, is about 0."""
    power, tried = 0.0, Tried()
    for _ in range(100):
        found = excess(2.0**power)
        if abs(found) <= near:
            break
        power = better_power(power, found, values, tried)
    return float(2.0**power)


def better_power(power: float, excess: float, values: int, tried: Tried) -> float:
    """The next step to try, as a power of two.

    Half the step is a bit more of all `values`, so Newton's method knows its slope beforehand. Where values have hardly
    a bit left it goes slowly, but never too far. Codes have whole bits, so bytes may jump where a step hardly changes:
    once there is a step on either side, it goes between them: `tried` has the last one of too many bytes and the last
    one of too few, and is told of this one's `excess`.
    """
    tried[excess > 0] = power, excess
    if len(tried) < 2:
        return power + 8 * excess / values
    (fine, over), (coarse, under) = tried[True], tried[False]
    return fine + (coarse - fine) * over / (over - under)
