"""recast-cli: rewrite vision checkpoints as mixtures of shared templates, adapt them in fewer than 50 floats a task.

All that the commands do, from Python; names are imported when they are first used, so that importing this is free:

    import recast_cli as recast

    source = recast.open_source("vit_small_patch16_224")
    base = recast.save_base(recast.mimic(source, recast.plan_layout(source.modules)), Path("base.safetensors"))
    task = recast.adapt(base, Path("data/flowers"), "flowers", Path("tasks/flowers"))
    model = recast.merge(base, task.vector, places=task.places)  # a plain timm model

Paper: RECAST, ICLR 2025.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from recast_cli.version import __version__

PUBLIC = {
    "errors": ("DamagedFile", "MissingFile", "OptionError", "RecastError", "UnknownArchitecture"),
    "layout.layout": ("Bank", "Layout"),
    "layout.plan": ("plan_layout",),
    "source.source": ("Source",),
    "source.open": ("open_source",),
    "mimic.decompose.solver_options": ("GradientOptions", "VaeOptions"),
    "mimic.options": ("MimicOptions",),
    "mimic.make_base": ("make_base",),
    "mimic.decompose.decompose": ("mimic",),
    "base.base": ("Base",),
    "base.file": ("load_base", "save_base"),
    "mimic.compress.compress": ("compress",),
    "model.adapters.adapter": ("Adapter",),
    "model.attach": ("attach", "merge"),
    "model.switcher": ("Switcher",),
    "runtime.device": ("tune_process",),
    "measure.verify": ("Verification", "verify"),
    "task.options": ("AdaptOptions",),
    "images.datasets": ("fetch_known",),
    "adapt.adapt": ("adapt",),
    "task.task": ("Task", "load_task", "save_task"),
    "measure.evaluate": ("Evaluation", "Guess", "evaluate", "evaluate_source", "predict"),
    "export.export": ("Exported", "export", "export_all"),
    "compare.spec": ("read_comparison",),
    "compare.runner": ("compare",),
    "compare.leaderboard": ("leaderboard",),
    "measure.diagnose": ("BankDiagnosis", "compare_to_base", "diagnose", "diagnose_roles", "similarity"),
    "report.figures": ("plot_base", "plot_tasks"),
}
"""Module of the engine -> what it gives to the public."""

HOME = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = [*sorted(HOME), "__version__"]


RENAMED = {"standings": "leaderboard"}
"""Names of version 0.1.0 before its release -> today's; they go with version 0.3."""


def __getattr__(name: str) -> Any:
    if name in RENAMED:
        warnings.warn(f"recast_cli.{name} is now recast_cli.{RENAMED[name]}", DeprecationWarning, stacklevel=2)
        name = RENAMED[name]
    if name not in HOME:
        raise AttributeError(f"module 'recast_cli' has no attribute '{name}'")
    return getattr(importlib.import_module(f"recast_cli.engine.{HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:  # the same names for type checkers and editors
    from recast_cli.engine.adapt.adapt import adapt
    from recast_cli.engine.base.base import Base
    from recast_cli.engine.base.file import load_base, save_base
    from recast_cli.engine.compare.leaderboard import leaderboard
    from recast_cli.engine.compare.runner import compare
    from recast_cli.engine.compare.spec import read_comparison
    from recast_cli.engine.errors import DamagedFile, MissingFile, OptionError, RecastError, UnknownArchitecture
    from recast_cli.engine.export.export import Exported, export, export_all
    from recast_cli.engine.images.datasets import fetch_known
    from recast_cli.engine.layout.layout import Bank, Layout
    from recast_cli.engine.layout.plan import plan_layout
    from recast_cli.engine.measure.diagnose import BankDiagnosis, compare_to_base, diagnose, diagnose_roles, similarity
    from recast_cli.engine.measure.evaluate import Evaluation, Guess, evaluate, evaluate_source, predict
    from recast_cli.engine.measure.verify import Verification, verify
    from recast_cli.engine.mimic.compress.compress import compress
    from recast_cli.engine.mimic.decompose.decompose import mimic
    from recast_cli.engine.mimic.decompose.solver_options import GradientOptions, VaeOptions
    from recast_cli.engine.mimic.make_base import make_base
    from recast_cli.engine.mimic.options import MimicOptions
    from recast_cli.engine.model.adapters.adapter import Adapter
    from recast_cli.engine.model.attach import attach, merge
    from recast_cli.engine.model.switcher import Switcher
    from recast_cli.engine.report.figures import plot_base, plot_tasks
    from recast_cli.engine.runtime.device import tune_process
    from recast_cli.engine.source.open import open_source
    from recast_cli.engine.source.source import Source
    from recast_cli.engine.task.options import AdaptOptions
    from recast_cli.engine.task.task import Task, load_task, save_task
