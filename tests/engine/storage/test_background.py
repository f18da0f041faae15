"""Jobs that follow in a thread: all of them, in order, few in memory, and their errors."""

import threading

import pytest

import recast_cli.engine.storage.background as behind_module
from recast_cli.engine.storage.background import Behind


def test_all_jobs_are_done_in_order(monkeypatch):
    monkeypatch.setattr(behind_module, "BATCH", 10)
    done, threads = [], set()

    def job(number):
        done.append(number)
        threads.add(threading.current_thread())

    with Behind() as behind:
        for number in range(25):
            behind.add(4, lambda number=number: job(number))
    assert done == list(range(25))
    assert threading.main_thread() not in threads
    assert len(threads) == 1


def test_no_more_than_two_batches_are_kept(monkeypatch):
    monkeypatch.setattr(behind_module, "BATCH", 10)
    free, kept, most = threading.Event(), set(), []

    def work(number):
        free.wait()
        kept.remove(number)

    timer = threading.Timer(0.2, free.set)  # until then the first batch is worked on
    timer.start()
    with Behind() as behind:
        for number in range(8):
            kept.add(number)
            most.append(5 * len(kept))
            behind.add(5, lambda number=number: work(number))
    assert max(most) == 20
    assert not kept


@pytest.mark.parametrize("size", [20, 200])
def test_a_large_batch_is_waited_for_before_the_next_tensors(size, monkeypatch):
    monkeypatch.setattr(behind_module, "BATCH", 10)
    monkeypatch.setattr(behind_module, "LARGE", 100)
    free, done = threading.Event(), []
    with Behind() as behind:
        threading.Timer(0.2, free.set).start()
        behind.add(size, lambda: done.append(free.wait()))
        behind.settle()
        assert bool(done) is (size == 200)
    assert done == [True]


@pytest.mark.parametrize("batch", [1, 100], ids=["while others follow", "at the end"])
def test_an_error_of_a_job_is_raised(batch, monkeypatch):
    monkeypatch.setattr(behind_module, "BATCH", batch)

    def wrong():
        raise MemoryError("too large")

    def all_of_them():
        with Behind() as behind:
            for job in (wrong, list, list):
                behind.add(1, job)

    with pytest.raises(MemoryError, match="too large"):
        all_of_them()


def test_an_error_beside_the_jobs_is_the_one_that_is_raised():
    done = []

    def stopped():
        with Behind() as behind:
            behind.add(1, lambda: done.append(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert done == []  # nobody needs it any more
