"""Which runs of a comparison are still to do, and which learning rate each method gets. Pure arithmetic; no torch.

At the first seed a method is trained on all tasks at each of its rates; the best mean validation accuracy over the
tasks chooses one for this source. Test images are read for the chosen rate only, and the other seeds use it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recast_cli.engine.compare.spec import Method, Plan, rate_at

MOST_ADDED = 3
"""Rates that a sweep may grow by, on each side."""

Results = Mapping[str, dict[str, Any]]
"""Digest of a run -> its line."""


@dataclass(frozen=True)
class Run:
    """One network to train, or, where its line is there without it, to measure on test.

    Attributes:
        source: Name in the plan, as are `task` and `method`.
        seed: Of order, augmentation and random starts.
        lr: Learning rate of what the method trains; None where that is the head alone.
        test: Whether its test images are measured, because its rate is the chosen one.
        key: The digest that it is known by.
    """

    source: str
    task: str
    method: str
    seed: int
    lr: float | None
    test: bool
    key: str


def next_runs(plan: Plan, results: Results) -> list[Run]:
    """The runs that can be done now: equal ones once, those of one source and task beside one another."""
    runs: dict[str, Run] = {}
    for source in plan.sources:
        for name in plan.methods:
            for run in runs_of(plan, source, name, results):
                known = runs.get(run.key)
                if known is None or run.test > known.test:
                    runs[run.key] = run
    places = {name: place for names in (plan.sources, plan.tasks) for place, name in enumerate(names)}
    return sorted(runs.values(), key=lambda run: (places[run.source], places[run.task]))


def runs_of(plan: Plan, source: str, name: str, results: Results) -> list[Run]:
    """The runs of one method on one source that can be done now."""
    method = plan.methods[name]

    def run(task: str, seed: int, lr: float | None, test: bool) -> Run:
        return Run(source, task, name, seed, lr, test, plan.key(source, task, name, seed, lr))

    chosen, wanted = choose_rate(plan, source, name, results)
    tasks = tasks_of(plan, source, name, results)
    if wanted:
        asked = [run(task, plan.seeds[0], lr, False) for lr in wanted for task in tasks]
        return [each for each in asked if each.key not in results]
    seeds = plan.seeds if method.kind != "linear-probe" else plan.seeds[:1]
    asked = [run(task, seed, chosen, True) for task in tasks for seed in seeds]
    return [each for each in asked if not measured(results, each.key)]


def measured(results: Results, key: str) -> bool:
    """Whether nothing is left to do for a run of a chosen rate."""
    line = results.get(key)
    return line is not None and ("error" in line or line["test_top1"] is not None)


def refusals(plan: Plan, source: str, name: str, results: Results) -> dict[str, str]:
    """Tasks on which a method cannot run at all, whatever its rate and seed, and why."""
    rates: list[Any] = tried(plan.methods[name]) or [None]
    keys = {task: [plan.key(source, task, name, plan.seeds[0], rate) for rate in rates] for task in plan.tasks}
    lines = {task: [results[key] for key in each if key in results] for task, each in keys.items()}
    wrong = {
        task: [line for line in each if "error" in line and not line.get("diverged")] for task, each in lines.items()
    }
    return {task: each[0]["error"] for task, each in wrong.items() if each}


def tasks_of(plan: Plan, source: str, name: str, results: Results) -> list[str]:
    """Tasks on which a method can run, as far as is known."""
    refusing = refusals(plan, source, name, results)
    return [task for task in plan.tasks if task not in refusing]


def choose_rate(plan: Plan, source: str, name: str, results: Results) -> tuple[float | None, list[float]]:
    """The chosen rate and no rates, or None and the rates whose scores are wanted first.

    A score is the mean validation accuracy over the tasks at the first seed. Where training diverges the accuracy
    counts as 0; tasks on which the method cannot run count for nothing. A sweep whose best rate is at an end of those
    tried grows there by a factor, `MOST_ADDED` times at most.
    """
    method, tasks = plan.methods[name], tasks_of(plan, source, name, results)
    if len(method.rates) < 2:
        return (method.rates[0] if method.rates else None), []

    def score(rate: float) -> float | None:
        lines = [results.get(plan.key(source, task, name, plan.seeds[0], rate)) for task in tasks]
        if any(line is None for line in lines):
            return None
        return math.fsum(line.get("val_top1") or 0.0 for line in lines if line) / max(1, len(lines))

    steps, growing = [-1, 0, 1], method.factor > 1
    while True:
        rates = [rate_at(method.start, method.factor, step) for step in steps] if growing else list(method.rates)
        scores = {rate: score(rate) for rate in rates}
        if missing := [rate for rate, found in scores.items() if found is None]:
            return None, missing
        best = min(rates, key=lambda rate: (-(scores[rate] or 0.0), round(abs(math.log(rate / method.start)), 3), rate))
        if growing and best == rates[0] and steps[0] > -1 - MOST_ADDED:
            steps.insert(0, steps[0] - 1)
        elif growing and best == rates[-1] and steps[-1] < 1 + MOST_ADDED:
            steps.append(steps[-1] + 1)
        else:
            return best, []


def still_needed(plan: Plan, results: Results) -> set[str]:
    """Digests of the runs whose trained values may yet be measured on test: of sweeps that are not settled."""
    needed: set[str] = set()
    for source in plan.sources:
        for name, method in plan.methods.items():
            rate, wanted = choose_rate(plan, source, name, results)
            if not method.rates:
                continue
            rates = tried(method) if wanted else [rate]
            for task in plan.tasks:
                keys = [plan.key(source, task, name, plan.seeds[0], each) for each in rates]
                needed.update(key for key in keys if not measured(results, key))
    return needed


def tried(method: Method) -> list[float]:
    """All rates that a sweep may come to."""
    steps = range(-1 - MOST_ADDED, 2 + MOST_ADDED)
    grows = method.factor > 1 and len(method.rates) > 1
    return [rate_at(method.start, method.factor, step) for step in steps] if grows else list(method.rates)


def expected(plan: Plan, source: str, name: str, results: Results) -> dict[str, Any]:
    """How many networks a method asks for on a source, as far as is known, and how many are done.

    Returns:
        `source`, `method`, `rates` (those still swept, or the chosen one), `runs` and `done`.
    """
    method, first = plan.methods[name], plan.seeds[0]
    rate, wanted = choose_rate(plan, source, name, results)
    with_lines = [
        each
        for each in tried(method)
        if any(plan.key(source, task, name, first, each) in results for task in plan.tasks)
    ]
    rates: list[float | None] = [*dict.fromkeys((*method.rates, *with_lines))] or [None]
    chosen = rates[0] if wanted else rate
    others = [] if method.kind == "linear-probe" else plan.seeds[1:]
    places = [(first, each) for each in rates] + [(seed, chosen) for seed in others]
    tasks = tasks_of(plan, source, name, results)
    runs = [(plan.key(source, task, name, seed, each), each) for task in tasks for seed, each in places]
    done = [measured(results, key) if each == rate else key in results for key, each in runs]
    return {
        "source": source,
        "method": name,
        "rates": [each for each in sorted(rates, key=lambda each: each or 0.0) if each is not None],
        "runs": len(runs),
        "done": sum(done),
    }
