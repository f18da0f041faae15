"""Whole runs of `recast adapt`: the default recipe against the paper's, by the time to the paper's best accuracy.

    python tests/benchmarks/adapt.py base.safetensors flowers17 birds50 --image-size 112
    python tests/benchmarks/adapt.py base.safetensors birds50 --paper-base attention.safetensors --image-size 112

Runs in the working folder and goes on where it was stopped; the paper's 100 epochs take long. The paper's best accuracy
is the best on validation over its 100 epochs; the time to it is that of the whole road to the first epoch that has it:
decoding, for the default recipe the linear probe, and all epochs with their validation. Where only the head that is
solved at the end has it, that is counted as well, with every epoch before it.
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
    parser.add_argument(
        "--paper-base", type=Path, help="for the paper's recipe, as one of its own layout (default: base)"
    )
    parser.add_argument("data", type=Path, nargs="+", metavar="DIR", help="image folders")
    parser.add_argument("--image-size", type=int, default=112, help="pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    rows = []
    for data in options.data:
        bases = {"paper": options.paper_base or options.base, "default": options.base}
        records = {recipe: adapt(options, base, data, recipe) for recipe, base in bases.items()}
        goal = records["paper"]["metrics"]["val_top1"]
        _, whole = reach(records["paper"], goal)
        assert whole is not None
        for recipe, record in records.items():
            reached, taken = reach(record, goal)
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
    report("adapt", rows, options.json, image_size=options.image_size, bases=[base.name for base in bases.values()])


def adapt(options: Any, base: Path, data: Path, recipe: str) -> dict[str, Any]:
    """The record of a run; a finished one is not repeated, an unfinished one is gone on with."""
    task = f"{data.name}-{recipe}"
    flags = ["--base", base, "--data", data, "--recipe", recipe, "--image-size", options.image_size]
    run(sys.executable, "-m", "recast_cli", "adapt", "--task", task, *flags, "--seed", options.seed, "--json")
    return yaml.safe_load(Path("tasks", task, "task.yaml").read_text(encoding="utf-8"))


def reach(record: dict[str, Any], goal: float) -> tuple[int | str | None, float | None]:
    """The first epoch with the validation accuracy `goal`, or the last head, and the wall seconds to its end."""
    timings = record["timings"]
    # the paper's recipe needs no probe; it is fitted for comparison alone
    probe = timings["probe"] if record["options"]["recipe"] != "paper" else 0.0
    before = timings["decode"] + timings["build"] + probe
    for epoch in record["history"]:
        if epoch["val_top1"] is not None and epoch["val_top1"] >= goal:
            return epoch["number"], before + sum(
                each["seconds"] or 0.0 for each in record["history"][: epoch["number"] + 1]
            )
    if record["metrics"]["val_top1"] >= goal:
        return "head solved again", before + timings["train"]
    return None, None


if __name__ == "__main__":
    main()
