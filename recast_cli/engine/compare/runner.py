"""Do the runs of a comparison, here or in several processes, and keep a line of each in runs.jsonl.

That file alone says what is done: lines are only ever added, the last one of a run counts, and one that was cut short
is dropped. A run that fails for a reason of the machine's leaves no line, so the next call tries it again.
"""

import contextlib
import json
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Generator
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from recast_cli.engine.compare.spec import OWN_KINDS, Plan
from recast_cli.engine.compare.sweep import Run, next_runs, still_needed
from recast_cli.engine.errors import DamagedFile, MissingFile, RecastError
from recast_cli.engine.storage.header import to_json

RUNS = "runs.jsonl"
FOLDERS = ("bases", "probes", "trained")
Outcome = tuple[Run, dict[str, Any] | None, str]
"""A run and its line, or None and what went wrong."""


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest of a run -> its last line in runs.jsonl.

    Raises:
        DamagedFile: A line that is not the last one is damaged.
    """
    path = folder / RUNS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    results: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(lines[:-1], start=1):  # what follows the last line break was cut short
        try:
            line = json.loads(text)
            results[line["key"]] = line
        except (ValueError, KeyError, TypeError):
            raise DamagedFile(f"{path} line {number} is damaged", "Remove this line: its run is done again.") from None
    return results


def mend(folder: Path) -> None:
    """Remove a last line that was cut short."""
    path = folder / RUNS
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(content.rfind(b"\n") + 1)


def add_line(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to runs.jsonl; it is on the disk when this returns."""
    with (folder / RUNS).open("a", encoding="utf-8") as stream:
        stream.write(to_json(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def check_files(plan: Plan, runs: list[Run]) -> None:
    """Raise RecastError unless the images and weight files of the runs are there."""
    hint = f"Relative paths start at {plan.path.parent.resolve()}."
    for task in dict.fromkeys(run.task for run in runs):
        if not plan.place(data := plan.tasks[task].data).is_dir():
            raise MissingFile(f"{plan.path}: tasks.{task}.data: the folder {data} does not exist", hint)
    for source in dict.fromkeys(run.source for run in runs):
        weights = plan.sources[source].get("weights")
        if weights and not plan.place(weights).exists():
            raise MissingFile(f"{plan.path}: sources.{source}.weights: {weights} does not exist", hint)


def compare(
    plan: Plan,
    folder: Path,
    jobs: int = 1,
    device: str | None = None,
    cache_size: int | None = None,
    on_run: Callable[[Run, dict[str, Any] | None, str], None] | None = None,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Do all that is still to do.

    Args:
        plan: From `read_comparison`.
        folder: Where runs.jsonl and all that is made go.
        jobs: Processes that work at a time; 1: this one.
        device: As `choose_device` takes it.
        cache_size: Bytes that the cache of decoded images may take.
        on_run: Called after a run with its line, or None and what went wrong.

    Returns:
        Digest of a run -> its line, and how many runs failed for a reason of the machine's.

    Raises:
        RecastError: Images or weights are missing, or a method does not have an option.
    """
    results = read_results(folder)
    runs = next_runs(plan, results)
    if not runs:
        return results, 0
    check_files(plan, runs)
    if any(method.kind not in OWN_KINDS for method in plan.methods.values()):
        from recast_cli.engine.compare.candidate import check_methods

        check_methods(plan)
    from recast_cli.engine.compare.artifacts import forget_images, make_bases

    new = [path for path in (folder, *(folder / name for name in FOLDERS)) if not path.exists()]
    for path in new:
        path.mkdir(parents=True, exist_ok=True)
    mend(folder)
    try:
        make_bases(plan, runs, folder)
    except RecastError:
        for path in reversed(new):
            with contextlib.suppress(OSError):  # there is a base in it
                path.rmdir()
        raise
    failed: set[str] = set()
    under_way: set[str] = set()

    def todo() -> tuple[Run, dict[str, Any] | None] | None:
        """The next run, marked as under way, and its line so far."""
        for run in next_runs(plan, results):
            if run.key not in failed and run.key not in under_way:
                under_way.add(run.key)
                return run, results.get(run.key)
        return None

    do = partial(attempt, plan, folder, device, cache_size)
    outcomes = (do(*item) for item in iter(todo, None)) if jobs == 1 else in_processes(do, todo, jobs, device)
    with contextlib.closing(outcomes):  # after an interrupt no process may be left until the garbage is collected
        for run, line, trouble in outcomes:
            under_way.discard(run.key)
            if line is None:
                failed.add(run.key)
            else:
                add_line(folder, line)
                results[run.key] = line
                tidy(plan, folder, results, under_way)
            if on_run:
                on_run(run, line, trouble)
    forget_images()
    return results, len(failed)


def tidy(plan: Plan, folder: Path, results: dict[str, dict[str, Any]], under_way: set[str]) -> None:
    """Delete what was trained and will not be measured any more."""
    needed = still_needed(plan, results) | under_way
    for path in (folder / "trained").glob("*.safetensors"):
        if path.name.split(".")[0] not in needed:
            path.unlink(missing_ok=True)


def attempt(
    plan: Plan, folder: Path, device: str | None, cache_size: int | None, run: Run, line: dict[str, Any] | None
) -> Outcome:
    """Do a run; whatever is raised is told in words."""
    from recast_cli.engine.compare.trial import do_run

    try:
        return run, do_run(plan, run, folder, line, device, cache_size), ""
    except RecastError as error:
        return run, None, str(error)
    except Exception as error:  # one run must not end the others
        if os.environ.get("RECAST_DEBUG"):
            raise
        return run, None, f"{type(error).__name__}: {' '.join(str(error).split())}"


Do = Callable[[Run, "dict[str, Any] | None"], Outcome]


def in_processes(
    do: Do, todo: Callable[[], tuple[Run, dict[str, Any] | None] | None], jobs: int, device: str | None
) -> Generator[Outcome]:
    """Do runs in `jobs` processes. One that dies costs its run; another takes its place."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, Any] = {}
    runs: dict[Connection, Run] = {}
    idle: list[Connection] = []

    def employ() -> Connection:
        """Start a process."""
        ours, theirs = context.Pipe()
        worker = context.Process(target=work, args=(theirs, do, jobs, device), daemon=True)
        worker.start()
        theirs.close()  # the worker's end alone is left, so its death ends the connection
        workers[ours] = worker
        return ours

    try:
        while True:
            while (idle or len(workers) < jobs) and (item := todo()):
                channel = idle.pop() if idle else employ()
                runs[channel] = item[0]
                with contextlib.suppress(OSError):  # it died while it had nothing to do: told below, as its run's end
                    channel.send(item)
            if not runs:
                return
            for channel in [each for each in wait(list(runs)) if isinstance(each, Connection)]:
                run = runs.pop(channel)
                try:
                    line, trouble = channel.recv()
                    idle.append(channel)
                except (EOFError, OSError):
                    worker = workers.pop(channel)
                    worker.join()
                    line, trouble = None, f"its process died with exit code {worker.exitcode}"
                yield run, line, trouble
    finally:
        for worker in workers.values():
            worker.kill()
        for worker in workers.values():
            worker.join()


def work(channel: Connection, do: Do, jobs: int, device: str | None) -> None:
    """What a process does: runs that come through `channel`, until it ends."""
    import signal

    import torch

    from recast_cli.engine.images.decode import cores
    from recast_cli.engine.runtime.device import choose_device, tune_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it too, and ends this one
    threading.Thread(target=leave_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    torch.set_num_threads(min(torch.get_num_threads(), max(1, cores() // jobs)))
    tune_process(choose_device(device))
    with contextlib.suppress(EOFError, OSError):
        while True:
            run, line = channel.recv()
            channel.send(do(run, line)[1:])


def leave_with_parent() -> None:
    """End this process when the one that started it is gone, however that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
