"""What is recorded as a CUDA graph and what is done as it is, without a card: the recording itself is a stand-in."""

import pytest
import torch

from recast_cli.engine.runtime import cuda_graph as module
from recast_cli.engine.runtime.cuda_graph import Replayed


class Recording:
    """Stands in for `Graph`: remembers that it was made and does the work when it is called."""

    made: list[tuple[torch.Size, ...]]
    refuses: type[Exception] | None

    def __init__(self, work, inputs, pool):
        if Recording.refuses:
            raise Recording.refuses("cannot be recorded")
        Recording.made.append(tuple(each.shape for each in inputs))
        self.work, self.pool, self.calls = work, pool, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.work(*inputs)


@pytest.fixture
def replayed(monkeypatch):
    """Work that notes its inputs, and the same as `Replayed`."""
    Recording.made, Recording.refuses = [], None
    monkeypatch.setattr(module, "Graph", Recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    done = []

    def work(*inputs):
        done.append(inputs)
        return [sum(each.sum() for each in inputs)]

    return done, Replayed(work)


def test_what_comes_again_is_recorded_and_replayed(replayed):
    done, again = replayed
    sizes = [4, 4, 3, 4, 3, 3, 4]
    for size in sizes:
        assert float(again(torch.ones(size), torch.ones(2, size))[0]) == 3 * size
    assert len(done) == len(sizes)  # each was done once
    assert Recording.made == [((4,), (2, 4)), ((3,), (2, 3))]  # when it came for the second time
    assert [each.calls for each in again.graphs.values()] == [3, 2]
    assert len({each.pool for each in again.graphs.values()}) == 1


@pytest.mark.parametrize("error", [RuntimeError, torch.cuda.OutOfMemoryError])
def test_what_cannot_be_recorded_is_done_as_it_is_from_then_on(error, replayed):
    done, again = replayed
    again(torch.ones(4))
    again(torch.ones(4))
    Recording.refuses = error
    for _ in range(3):
        assert float(again(torch.ones(3))[0]) == 3
    Recording.refuses = None
    assert float(again(torch.ones(3))[0]) == 3  # it is not tried again
    assert len(done) == 6
    assert Recording.made == [((4,),)]
    again(torch.ones(4))
    assert again.graphs[(torch.Size([4]),)].calls == 2  # what was recorded before goes on


def test_an_error_of_the_work_itself_is_raised(monkeypatch, replayed):
    _, again = replayed
    again.work = lambda rows: rows @ torch.ones(9)
    with pytest.raises(RuntimeError, match="size"):
        again(torch.ones(4))
    with pytest.raises(RuntimeError, match="size"):
        again(torch.ones(4))
