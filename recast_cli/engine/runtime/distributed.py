"""Several processes that work as one, as `torchrun` starts them. In a process alone every function does nothing.

Only the first process, rank 0, writes and talks. All of them read the same images and hold the same parameters; each
takes every world-th row of a batch, and gradients are added up, so that the result is the one a single process has.
"""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")
PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others; the first may be decoding for long."""


def started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if joined() else 0


def world() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if joined() else 1


def joined() -> bool:
    """Whether this process works with others."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def join(device: torch.device) -> Iterator[None]:
    """Work together with the processes that torchrun started beside this one: NCCL on CUDA, Gloo elsewhere."""
    if started() == 1 or joined():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    # after an error nothing is taken down in order: the others wait for this process, and torchrun ends them
    yield
    distributed.destroy_process_group()


def mine(rows: Tensor) -> Tensor:
    """This process's share of `rows` (N, …): every world-th."""
    return rows[rank() :: world()] if joined() else rows


def gather(rows: Tensor, count: int) -> Tensor:
    """The inverse of `mine`: all `count` rows in order, on every process; each gives its share, on its device."""
    if not joined():
        return rows
    size = -(-count // world())
    padded = torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])
    shares = [torch.empty_like(padded) for _ in range(world())]
    distributed.all_gather(shares, padded.contiguous())
    return torch.stack(shares, 1).flatten(0, 1)[:count]


def add(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one message."""
    if not joined():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` gives on rank 0, which alone calls it, on every process."""
    if not joined():
        return make()
    box: list[Any] = [make() if rank() == 0 else None]
    distributed.broadcast_object_list(box)
    return box[0]


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Rank 0 runs the block while the others wait; then they run it. For work that leaves a file to be found."""
    if joined() and rank():
        distributed.barrier()
    yield
    if joined() and not rank():
        distributed.barrier()
