"""One batch, in as many parts as memory asks for: its gradients are the same however it is cut."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recast_cli.engine.runtime.cuda_graph import Replayed, Work

HEADROOM = 0.4
"""Share of the free memory that a batch of automatic size may take: a whole batch has its memory in a graph, and the
last one of an epoch, which is smaller, wants its own once beside it."""
LEAST_STEPS, MOST_IMAGES = 8, 1024
"""A batch of automatic size leaves at least so many steps to an epoch, and holds at most so many images."""

Loss = Callable[..., Tensor]
"""Tensors with a row for each image -> the loss summed over the images."""


class Accumulator:
    """Gradients of a summed loss, part by part; after an out-of-memory error the parts are half as large.

    Args:
        loss: Of some images.
        parameters: What it is differentiated by, all on one device. On CUDA, parts of the same shapes are replayed as
            a graph, so they stay where they are in memory.
        size: Images in a part.
    """

    def __init__(self, loss: Loss, parameters: Sequence[Tensor], size: int) -> None:
        def differentiate(*part: Tensor) -> list[Tensor]:  # no method: a cycle would keep the device's memory
            value = loss(*part)
            return [value.detach(), *torch.autograd.grad(value, parameters, materialize_grads=True)]

        self.parameters, self.size, self.plain = parameters, size, differentiate
        self.work: Work = Replayed(differentiate) if parameters[0].is_cuda else differentiate

    def gradients(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss of all images, (B, ...) in each input, and its gradients, to be used before the next call.

        Raises:
            RuntimeError: Out of memory with a single image.
        """
        while True:
            try:
                return self.attempt(inputs)
            except RuntimeError as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
            # here, outside of `except`, the error no longer holds the tensors of the attempt
            self.size, self.work = (self.size + 1) // 2, self.plain  # graphs would keep their memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def attempt(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The same in parts of the present size."""
        count = len(inputs[0])
        if 0 < count <= self.size:
            value, *gradients = self.work(*inputs)
            return value, gradients
        total, sums = self.parameters[0].new_zeros(()), [torch.zeros_like(each) for each in self.parameters]
        for part in zip(*(each.split(self.size) for each in inputs), strict=True) if count else ():
            value, *gradients = self.work(*part)
            # not in place: two parameters may have one tensor for their gradients
            total, sums = total + value, list(torch._foreach_add(sums, gradients))
        return total, sums


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a graphics card or on the CPU, whose error has no class of its own."""
    texts = ("can't allocate memory", "not enough memory")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(text in str(error) for text in texts)


def fitting_batch(step: Callable[[int], object], count: int, device: torch.device, default: int) -> int:
    """A power of two: the largest batch that fits the graphics card with headroom; `default` on a CPU.

    Args:
        step: Computes gradients of a batch of so many images, and changes nothing.
        count: Training images.
        device: Where it computes.
        default: Images a step where memory says nothing.
    """
    if device.type != "cuda":
        return default
    peaks = []
    for size in (8, 16):
        try:
            step(size)  # once before it is measured: libraries take their workspaces
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            step(size)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return size // 2
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    image = max((peaks[1] - peaks[0]) / 8, 1)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    most = min(HEADROOM * free / image, count / LEAST_STEPS, MOST_IMAGES)
    return 2 ** max(int(most).bit_length() - 1, 0)
