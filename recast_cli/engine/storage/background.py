"""Work on tensors that follows a few megabytes behind those that are made, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

BATCH_BYTES = 2**21
"""Bytes of tensors from which the thread begins with them: to wake it takes as long as to hash a tenth of them."""
LARGE = 2**27
"""Bytes of tensors of which `settle` leaves none in memory."""


class Background:
    """Jobs on tensors that nobody else changes, done while the next tensors are made.

    At most two batches are in memory for them: the one that is worked on and the one that is gathered.

        with Background() as background:
            for tensor in tensors:
                background.add(tensor.nbytes, partial(work, tensor))
        # here all jobs are done
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.jobs: list[Callable[[], None]] = []
        self.size = self.running_size = 0
        self.running: Future[None] | None = None

    def add(self, size: int, job: Callable[[], None]) -> None:
        """Do `job` in a while, which keeps `size` bytes in memory until then. Raises what an earlier job raised."""
        self.jobs.append(job)
        self.size += size
        if self.size >= BATCH_BYTES:
            self.begin()

    def begin(self) -> None:
        """Start with what is gathered, once what was started before is done."""
        self.wait()
        self.running = self.pool.submit(run, self.jobs)
        self.jobs, self.running_size, self.size = [], self.size, 0

    def wait(self) -> None:
        """Until what was started is done. Raises what a job raised."""
        if self.running:
            self.running.result()

    def settle(self) -> None:
        """Where what is worked on is large, wait for it: the next tensors may need its memory."""
        if self.running_size >= LARGE:
            self.wait()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with self.pool:
            if kind is None:
                self.begin()
                self.wait()


def run(jobs: list[Callable[[], None]]) -> None:
    """All of them in turn, keeping none that is done."""
    jobs.reverse()
    while jobs:
        jobs.pop()()
