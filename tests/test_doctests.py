"""The examples in docstrings run, on a tiny network in a folder with a task of flowers."""

import doctest
import importlib
import shutil
from pathlib import Path

import pytest
from helpers import draw_images

from recast_cli import HOME
from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.task.options import AdaptOptions
from recast_cli.engine.task.task import load_task

HOMES = {**HOME, "mix": "base.mixture"}
EXAMPLES = ("mix", "plan_layout", "make_base", "merge", "Switcher", "adapt", "load_task")
"""What has an example in any case; others may."""


def documented(name):
    """The module of a public thing, and the example in its docstring, if any."""
    module = importlib.import_module(f"recast_cli.engine.{HOMES[name]}")
    return module, doctest.DocTestParser().get_examples(getattr(module, name).__doc__ or "")


@pytest.fixture(scope="module")
def flowers(tmp_path_factory, vit_base):
    """A folder with images of flowers and the task that was learned on them."""
    root = tmp_path_factory.mktemp("flowers")
    data = draw_images(root / "data" / "flowers", ("daisy", "poppy", "rose"))
    adapt(vit_base, data, "flowers", root / "tasks" / "flowers", AdaptOptions(epochs=1), device="cpu")
    return root


@pytest.mark.parametrize("name", [name for name in HOMES if name in EXAMPLES or documented(name)[1]])
def test_the_example_runs(name, flowers, vit_source, vit_base, tmp_path):
    module, examples = documented(name)
    assert examples, f"the docstring of {name} has no example"
    shutil.copytree(flowers / "data", tmp_path / "data")
    known = {**vars(module), "Path": Path, "source": vit_source, "base": vit_base}
    if name != "adapt":  # it makes the task
        shutil.copytree(flowers / "tasks", tmp_path / "tasks")
        known["task"] = load_task(tmp_path / "tasks" / "flowers", vit_base)
    test = doctest.DocTest(examples, known, name, None, None, None)
    printed = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert not failed, "".join(printed)
