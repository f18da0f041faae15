"""What the benchmarks share: cases timed turn by turn in one run, medians and ratios, a table with its JSON."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each case (default: 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (default: <benchmark>.json)")
    return parser


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmarks that run a network: which one, on what images, where."""
    import torch

    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm name (default: %(default)s)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="local weights (default: random ones)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def open_network(options: argparse.Namespace) -> Any:
    """The source that the options of `add_network_options` name; without weights as timm initialises it."""
    import timm

    from recast_cli.engine.source.open import open_source
    from recast_cli.engine.source.source import from_model

    if options.weights:
        return open_source(options.model, weights=options.weights)
    return from_model(options.model, timm.create_model(options.model).eval(), {})


def race(
    cases: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, device: str | None = None
) -> dict[str, float]:
    """Median seconds of each case. The cases take turns, so that a noisy machine is noisy for all of them alike.

    Args:
        cases: Name -> what is measured.
        rounds: Measurements of each.
        warmup: Runs of each before them.
        device: That a case leaves work to, which is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmup + rounds):
        if turn == warmup:
            gc.freeze()  # as commands do: what was imported is looked through no more
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if device:
                synchronise(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(*command: str | Path, **environment: str) -> dict[str, Any]:
    """Run a command to its end: its seconds, its peak memory in bytes, and what it printed.

    Peak memory is the largest resident set of the process, pages of mapped files included.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed with status {status}")
    return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024, "output": output}


def peak_bytes() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """What a figure depends on: processor, cores, threads, graphics card, versions, date."""
    import timm
    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(benchmark: str, rows: list[dict[str, Any]], file: Path | None, **facts: Any) -> None:
    """Print `rows` as a Markdown table (its columns are the keys of the first) and write them as JSON.

    Args:
        benchmark: Name of the benchmark; the JSON is called after it unless `file` names another.
        rows: One a case; floats are printed with three significant digits.
        file: Where the JSON goes.
        facts: Whatever else belongs to the figures.
    """
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(shown(row.get(name)) for name in names) + " |")
    content = {"benchmark": benchmark, "command": command(), "machine": machine(), **facts, "rows": rows}
    path = file or Path(f"{benchmark}.json")
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"\nwrote {path}", file=sys.stderr)


def shown(value: Any) -> str:
    """A cell of the table."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "-" if value is None else str(value)


def command() -> str:
    """The command line as a reader of the table would type it in the repository, without folders of this machine."""
    rest = [Path(part).name if "/" in part else part for part in sys.argv[1:]]
    return " ".join(["python", "tests/benchmarks/" + Path(sys.argv[0]).name, *rest])


def matrix_rate(device: str, dtype: Any = None, size: int | None = None) -> float:
    """FLOP/s of a large matrix product: what the machine can do at best, to compare others' work with.

    Args:
        device: cpu, cuda, …
        dtype: torch's; default: float32.
        size: Rows and columns; default: 8192 on a graphics card, else 2048.
    """
    import torch

    size = size or (2048 if device == "cpu" else 8192)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b)
        synchronise(device)

    repeats = 2 if device == "cpu" else 50
    return 2 * size**3 * repeats / race({"product": lambda: products(repeats)}, rounds=5)["product"]


def synchronise(device: str) -> None:
    """Wait for what the device still has to do, so that a clock sees it."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
