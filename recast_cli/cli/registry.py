"""The commands by name. The module of one is imported when that command is asked for: `recast --help` needs none."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer

SUMMARIES = {
    "mimic": "Rewrite a checkpoint's weights as mixtures of shared templates.",
    "adapt": "Teach a base a task from a folder of images.",
    "eval": "Merge tasks into plain weights and measure them.",
    "predict": "Print class and probability of each image.",
    "compare": "Compare RECAST with other methods on equal terms: one file in, a table and a plot out.",
    "export": "Write a base or its tasks for other programs: plain weights, nothing of RECAST in them.",
    "inspect": "Look inside a base, tasks, or any safetensors file.",
    "demo": "Show all of it: mimic, two tasks, eval and a plot.",
}
"""The first sentence of each command's help, in the order of their use."""


class Commands(Mapping[str, Any]):
    """Name -> Typer's command, made of the function in the module of that name."""

    def __getitem__(self, name: str) -> Any:
        if name not in SUMMARIES:
            raise KeyError(name)
        place = {"eval": "evaluate"}.get(name, name)  # eval is a name of Python's
        function = getattr(importlib.import_module(f"recast_cli.cli.commands.{place}"), place)
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name)(function)
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)
