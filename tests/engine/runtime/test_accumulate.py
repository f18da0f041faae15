"""Gradients of a batch that is cut, and what happens when memory runs out."""

import pytest
import torch
from torch import nn

from recast_cli.engine.runtime.accumulate import Accumulator, fitting_batch, out_of_memory

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …"


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    return rows, weight, lambda chosen: (rows[chosen] @ weight.T).exp().sum()


@pytest.mark.parametrize("size", [1, 2, 5, 13, 100])
def test_parts_add_up_to_the_whole(size, setting):
    _, weight, loss = setting
    whole = loss(torch.arange(13))
    value, (gradient,) = Accumulator(loss, [weight], size).gradients(torch.arange(13))
    torch.testing.assert_close(value, whole.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, weight)[0])
    assert weight.grad is None


def test_no_rows_give_no_gradient(setting):
    _, weight, loss = setting
    value, (gradient,) = Accumulator(loss, [weight], 4).gradients(torch.arange(0))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(weight))


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_ERROR)])
def test_parts_are_halved_until_they_fit_and_stay_so(error, setting):
    _, weight, loss = setting
    sizes = []

    def tight(chosen):
        sizes.append(len(chosen))
        if len(chosen) > 4 or (len(sizes) == 3 and sizes[-1] > 2):
            raise error
        return loss(chosen)

    accumulator = Accumulator(tight, [weight], 13)
    value, (gradient,) = accumulator.gradients(torch.arange(13))
    whole = loss(torch.arange(13))
    torch.testing.assert_close(value, whole.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(whole, weight)[0])
    assert sizes[:3] == [13, 7, 4]
    assert accumulator.size == 2
    accumulator.gradients(torch.arange(13))
    assert accumulator.size == 2


def test_a_single_image_that_does_not_fit_is_an_error(setting):
    def never(chosen):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        Accumulator(never, [setting[1]], 8).gradients(torch.arange(13))


def test_other_errors_are_not_taken_for_want_of_memory(setting):
    def broken(chosen):
        raise RuntimeError("shapes do not match")

    assert not out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        Accumulator(broken, [setting[1]], 8).gradients(torch.arange(13))


def test_on_a_cpu_the_automatic_batch_is_the_recipe_s(setting):
    assert fitting_batch(lambda size: pytest.fail("tried"), 1000, torch.device("cpu"), 32) == 32


@pytest.mark.parametrize(("per_image", "count", "batch"), [(2**20, 10**6, 256), (2**20, 700, 64), (1, 10**6, 1024)])
def test_the_automatic_batch_fills_the_card_with_headroom(per_image, count, batch, monkeypatch):
    """A card with 1 GiB free, of which 410 MiB may be taken; a power of two, and eight steps an epoch."""
    used = [0]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: used[0])
    step = lambda size: used.__setitem__(0, 1000 + per_image * size)  # noqa: E731
    assert fitting_batch(step, count, torch.device("cuda"), 32) == batch


@pytest.mark.parametrize(("fits", "batch"), [(15, 8), (7, 4)])
def test_where_few_images_fit_the_automatic_batch_is_as_many(fits, batch, monkeypatch):
    for name in ("memory_allocated", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)

    def step(size):
        if size > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert fitting_batch(step, 1000, torch.device("cuda"), 32) == batch
