"""Whole runs of `recast adapt`: the default recipe against the paper's, by the time to the paper's best accuracy.

    python tests/benchmarks/adapt.py base.safetensors flowers17 birds50 --image-size 112

Runs in the working folder and goes on where it was stopped; the paper's 100 epochs take long. The paper's best accuracy
is the best on validation over its 100 epochs; the time to it is that of the whole road to the first epoch that has it:
decoding, for the default recipe the linear probe, and all epochs with their validation.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from common import arguments, report, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("base", type=Path, help="from `recast mimic`")
    parser.add_argument("data", type=Path, nargs="+", metavar="DIR", help="image folders")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    rows = []
    for data in options.data:
        records = {recipe: adapt(options, data, recipe) for recipe in ("paper", "default")}
        goal = records["paper"]["metrics"]["val_top1"]
        whole = seconds_until(records["paper"], records["paper"]["metrics"]["best_epoch"])
        for recipe, record in records.items():
            reached = next((epoch["number"] for epoch in record["history"] if epoch["val_top1"] >= goal), None)
            taken = None if reached is None else seconds_until(record, reached)
            rows.append(
                {
                    "task": data.name,
                    "recipe": recipe,
                    "epochs": len(record["history"]) - 1,
                    "whole run, s": record["seconds"],
                    "best val top-1, %": 100 * record["metrics"]["val_top1"],
                    "test top-1, %": 100 * record["metrics"]["test_top1"],
                    "epoch with the paper's best val": reached,
                    "seconds to it": taken,
                    "paper's seconds to it / these": whole / taken if taken else None,
                    "paper's whole run / these": records["paper"]["seconds"] / taken if taken else None,
                }
            )
    report("adapt", rows, options.json, image_size=options.image_size, base=options.base.name)


def adapt(options: Any, data: Path, recipe: str) -> dict[str, Any]:
    """The record of a run; a finished one is not repeated, an unfinished one is gone on with."""
    task = f"{data.name}-{recipe}"
    flags = ["--base", options.base, "--data", data, "--recipe", recipe, "--image-size", options.image_size]
    run(sys.executable, "-m", "recast_cli", "adapt", "--task", task, *flags, "--seed", options.seed, "--json")
    return yaml.safe_load(Path("tasks", task, "task.yaml").read_text(encoding="utf-8"))


def seconds_until(record: dict[str, Any], number: int) -> float:
    """Wall seconds from the start of a run to the end of its epoch `number`."""
    timings = record["timings"]
    # the paper's recipe needs no probe; it is fitted for comparison alone
    probe = timings["probe"] if record["options"]["recipe"] != "paper" else 0.0
    epochs = (epoch["seconds"] or 0.0 for epoch in record["history"] if epoch["number"] <= number)
    return timings["decode"] + timings["build"] + probe + sum(epochs)


if __name__ == "__main__":
    main()
