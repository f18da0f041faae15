"""CUDA graphs: work on a graphics card that is recorded once and then started with one call.

A training step of a small network is a thousand short kernels. Python starts them one by one, more slowly than the card
does them; replayed from a graph they follow one another without it (https://pytorch.org/docs/stable/notes/cuda.html,
"CUDA Graphs").
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Work = Callable[..., Sequence[Tensor]]
"""Tensors -> tensors, all on one CUDA device, without making the CPU wait."""


class Graph:
    """What `work` does with tensors of these shapes, recorded.

    It must have run once before: libraries take their workspaces and choose their kernels then. Whatever else it reads
    or writes, parameters for instance, must stay where it is in memory; what it reads there may change. Graphs share a
    pool of memory whose results are not wanted at the same time.

    Raises:
        RuntimeError: `work` does something that cannot be recorded.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor], pool: Any) -> None:
        self.inputs = [each.clone() for each in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.outputs = work(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What `work` gives; the same tensors every time, which the next call writes anew."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.outputs


class Replayed:
    """`work` as it is at first, and as a graph where inputs of the same shapes come again.

    What cannot be recorded, and what a card has no memory to record, goes on as it is.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.pool = work, torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple[torch.Size, ...], Graph | None] = {}
        self.records = True

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What `work` gives; the next call may write it anew."""
        key = tuple(each.shape for each in inputs)
        if key not in self.graphs:
            self.graphs[key] = None
            return self.work(*inputs)
        if self.records and self.graphs[key] is None:
            try:
                self.graphs[key] = Graph(self.work, inputs, self.pool)
            except RuntimeError:  # where `work` itself is to blame, it fails again
                self.records = False
        graph = self.graphs[key]
        return self.work(*inputs) if graph is None else graph(*inputs)
