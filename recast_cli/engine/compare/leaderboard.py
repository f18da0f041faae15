"""What the runs of a comparison come to: one row a source and method, and the table of them. No torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from recast_cli.engine.compare.spec import Plan
from recast_cli.engine.compare.sweep import Results, choose_rate, refusals

BUDGET = 48
"""Floats of the paper: the best row of at most so many is marked."""


@dataclass(frozen=True)
class Score:
    """Mean test top-1 over seeds; the sample standard deviation is None for fewer than two runs."""

    mean: float
    std: float | None
    runs: int


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        source: Name, as are `method` and the keys of `tasks`; `kind` is the method's.
        floats: Trained, without the head, and places of chosen ones; `degrees_of_freedom` of them where a layout has
            fewer.
        file_bytes: Of the safetensors that holds them.
        lr: The chosen rate; None where there is none, or none yet.
        tasks: Task -> its score.
        mean: Over the tasks, of their means over seeds.
        std: Over seeds, of the mean over tasks of one seed.
        gain: Mean over tasks of what is gained over the linear probe.
        gap: Share of the way from linear probe to the smallest LoRA that this closes; None if there is none.
        seconds: Median of the runs; `peak_memory_mb` the largest.
        runs: Measured ones, of the `wanted`.
        error: Why it cannot run.
        best: The best of at most `BUDGET` floats.
    """

    source: str
    method: str
    kind: str
    lr: float | None
    wanted: int
    floats: int | None = None
    degrees_of_freedom: int | None = None
    file_bytes: int | None = None
    tasks: dict[str, Score] = field(default_factory=dict)
    mean: float | None = None
    std: float | None = None
    gain: float | None = None
    gap: float | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    runs: int = 0
    error: str | None = None
    best: bool = False


def leaderboard(plan: Plan, results: Results) -> list[Row]:
    """All rows, those of one source together: best mean first, then those that lack a task, then those without any."""
    by_source = [[row_of(plan, source, name, results) for name in plan.methods] for source in plan.sources]
    return [row for rows in by_source for row in compared(rows)]


def row_of(plan: Plan, source: str, name: str, results: Results) -> Row:
    """The row of a method as far as its own runs say it."""
    method = plan.methods[name]
    seeds = plan.seeds[:1] if method.kind == "linear-probe" else plan.seeds
    rate, wanted = choose_rate(plan, source, name, results)
    error = next(iter(refusals(plan, source, name, results).values()), None)
    row = Row(source, name, method.kind, rate, len(seeds) * len(plan.tasks), error=error)
    if wanted:
        return row
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for task in plan.tasks:
        for seed in seeds:
            line = results.get(plan.key(source, task, name, seed, rate))
            if line is not None and line.get("error"):
                error = error or line["error"]
            elif line is not None and line["test_top1"] is not None:
                lines[task, seed] = line
    if not lines:
        return replace(row, lr=None if error else rate, error=error)
    some = next(iter(lines.values()))
    tops = {place: line["test_top1"] for place, line in lines.items()}
    tasks = {task: [tops[task, seed] for seed in seeds if (task, seed) in tops] for task in plan.tasks}
    tasks = {task: values for task, values in tasks.items() if values}
    whole = [[tops[task, seed] for task in tasks] for seed in seeds if all((task, seed) in tops for task in tasks)]
    peaks = [line["peak_memory_mb"] for line in lines.values() if line["peak_memory_mb"] is not None]
    return replace(
        row,
        **{name: some[name] for name in ("floats", "degrees_of_freedom", "file_bytes")},
        tasks={task: Score(statistics.fmean(values), spread(values), len(values)) for task, values in tasks.items()},
        mean=statistics.fmean(statistics.fmean(values) for values in tasks.values()),
        std=spread([statistics.fmean(values) for values in whole]),
        seconds=statistics.median(line["seconds"] for line in lines.values()),
        peak_memory_mb=max(peaks, default=None),
        runs=len(lines),
        error=error,
    )


def spread(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def compared(rows: list[Row]) -> list[Row]:
    """The rows of one source in order, with what they gain over the linear probe and close of the gap to LoRA."""
    probe = next((row for row in rows if row.kind == "linear-probe" and row.mean is not None), None)
    lora = smallest_lora(rows)
    whole = [row for row in rows if row.runs == row.wanted and row.mean is not None]
    small = [row for row in whole if row.floats is not None and row.floats <= BUDGET]
    best = max((row.mean for row in small if row.mean is not None), default=None)
    found = []
    for row in rows:
        gain = gap = None
        if probe and row.tasks:
            both = [row.tasks[task].mean - probe.tasks[task].mean for task in row.tasks if task in probe.tasks]
            gain = statistics.fmean(both) if both else None
            if lora and row in whole and lora in whole and probe in whole:
                gap = share_of_gap(row.mean, probe.mean, lora.mean)
        found.append(replace(row, gain=gain, gap=gap, best=row in small and row.mean == best))
    most = max((len(row.tasks) for row in found), default=0)
    # a mean over fewer tasks is another quantity, so such a row does not stand among the others
    return sorted(found, key=lambda row: (row.mean is None, len(row.tasks) < most, -(row.mean or 0.0)))


def share_of_gap(mean: float | None, low: float | None, high: float | None) -> float | None:
    """Where `mean` lies on the way from `low` (0) to `high` (1); None where that is no way up."""
    if mean is None or low is None or high is None or high <= low:
        return None
    return (mean - low) / (high - low)


def smallest_lora(rows: Sequence[Row]) -> Row | None:
    """The LoRA of fewest floats among rows of one source that were measured."""
    loras = [row for row in rows if row.kind == "lora" and row.mean is not None]
    return min(loras, key=lambda row: row.floats or 0, default=None)


def table_of(plan: Plan, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The table of one source: its headings, and each row in words."""
    lora = smallest_lora(rows)
    names = ["method", "floats", "degrees of freedom", "file bytes", "learning rate", *plan.tasks, "mean"]
    names += ["over the probe", *([f"of the gap to {lora.method}"] if lora else []), "seconds", "peak MB"]
    return names, [cells(plan, row, lora is not None) for row in rows]


def cells(plan: Plan, row: Row, lora: bool) -> list[str]:
    """The row in words; accuracies in percent, ± a standard deviation over seeds."""
    facts = [told(count, ",") for count in (row.floats, row.degrees_of_freedom, row.file_bytes)]
    scores = [scored(score.mean, score.std) if (score := row.tasks.get(task)) else "–" for task in plan.tasks]
    mean = "–" if row.mean is None else scored(row.mean, row.std)
    gain = "–" if row.gain is None else f"{100 * row.gain:+.1f}"
    gap = ["–" if row.gap is None else f"{100 * row.gap:.0f} %"] if lora else []
    last = [told(row.seconds, ".1f"), told(row.peak_memory_mb, ".0f")]
    return [row.method, *facts, told(row.lr, ".3g"), *scores, mean, gain, *gap, *last]


def remark(row: Row) -> str:
    """What is to be said of a row that is not whole; empty for one that is."""
    if row.mean is None:
        return f"cannot run: {row.error}" if row.error else "not finished"
    if row.runs == row.wanted:
        return ""
    return f"rests on {row.runs} of {row.wanted} runs" + (f"; others cannot run: {row.error}" if row.error else "")


def told(value: float | None, form: str) -> str:
    """A number for people, in a format of Python's."""
    return "–" if value is None else format(value, form)


def scored(mean: float, std: float | None) -> str:
    """`91.2 ± 0.3`, without the spread where there is none."""
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def markdown(plan: Plan, rows: Sequence[Row]) -> str:
    """table.md: one table a source."""
    parts = [f"# {plan.path.stem}\n"]
    for source in plan.sources:
        own = [row for row in rows if row.source == source]
        names, texts = table_of(plan, own)
        parts += [f"## {source}\n", as_row(names), "|---|" + "---:|" * (len(names) - 1)]
        for row, each in zip(own, texts, strict=True):
            each[0] += f" ({said})" if (said := remark(row)) else ""
            each = [text.replace("|", "\\|") for text in each]
            parts.append(as_row([f"**{text}**" for text in each] if row.best else each))
        parts.append("")
    return "\n".join([*parts, legend(plan)]) + "\n"


def as_row(texts: Sequence[str]) -> str:
    """A row of Markdown."""
    return "| " + " | ".join(texts) + " |"


def legend(plan: Plan) -> str:
    """What the numbers are."""
    seeds = f"mean ± standard deviation over {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "one seed"
    return (
        f"Test top-1 in percent, {seeds}; bold: the best of at most {BUDGET} floats. Floats are those trained "
        "beside the head, and the places of chosen ones. Epoch and learning rate were chosen on validation images; "
        "test was measured once."
    )
