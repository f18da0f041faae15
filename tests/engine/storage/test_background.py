"""Jobs that follow in a thread: all of them, in order, few in memory, and their errors."""

import threading

import pytest

from recast_cli.engine.storage import background as background_module
from recast_cli.engine.storage.background import Background


def test_all_jobs_are_done_in_order(monkeypatch):
    monkeypatch.setattr(background_module, "BATCH_BYTES", 10)
    done, threads = [], set()

    def job(number):
        done.append(number)
        threads.add(threading.current_thread())

    with Background() as background:
        for number in range(25):
            background.add(4, lambda number=number: job(number))
    assert done == list(range(25))
    assert threading.main_thread() not in threads
    assert len(threads) == 1


def test_no_more_than_two_batches_are_kept(monkeypatch):
    monkeypatch.setattr(background_module, "BATCH_BYTES", 10)
    free, kept, most = threading.Event(), set(), []

    def work(number):
        free.wait()
        kept.remove(number)

    timer = threading.Timer(0.2, free.set)  # until then the first batch is worked on
    timer.start()
    with Background() as background:
        for number in range(8):
            kept.add(number)
            most.append(5 * len(kept))
            background.add(5, lambda number=number: work(number))
    assert max(most) == 20
    assert not kept


@pytest.mark.parametrize("size", [20, 200])
def test_a_large_batch_is_waited_for_before_the_next_tensors(size, monkeypatch):
    monkeypatch.setattr(background_module, "BATCH_BYTES", 10)
    monkeypatch.setattr(background_module, "LARGE", 100)
    free, done = threading.Event(), []
    with Background() as background:
        threading.Timer(0.2, free.set).start()
        background.add(size, lambda: done.append(free.wait()))
        background.settle()
        assert bool(done) is (size == 200)
    assert done == [True]


@pytest.mark.parametrize("batch", [1, 100], ids=["while others follow", "at the end"])
def test_an_error_of_a_job_is_raised(batch, monkeypatch):
    monkeypatch.setattr(background_module, "BATCH_BYTES", batch)

    def wrong():
        raise MemoryError("too large")

    def all_of_them():
        with Background() as background:
            for job in (wrong, list, list):
                background.add(1, job)

    with pytest.raises(MemoryError, match="too large"):
        all_of_them()


def test_an_error_beside_the_jobs_is_the_one_that_is_raised():
    done = []

    def stopped():
        with Background() as background:
            background.add(1, lambda: done.append(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert done == []  # nobody needs it any more
