"""A folder with a tiny network, two tasks and a comparison of them; a test module takes it by its `pytest_plugins`."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import draw_images, save_folder
from torch import nn

from recast_cli.engine.compare import candidate
from recast_cli.engine.compare import spec as comparison
from recast_cli.engine.compare.runner import compare, read_results
from recast_cli.engine.compare.spec import read_comparison
from recast_cli.engine.errors import RecastError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
YAML = """
epochs: 1
precision: float32
seeds: [0, 1]
sources:
  vit: vit
tasks:
  colours: pictures/colours
  shades: pictures/shades
methods:
  linear-probe:
  head:
  recast:
  listed: {method: recast, layout: paper-mlp, lr: [0.01, 0.1]}
"""
TIMES = {"seconds", "images_per_second", "peak_memory_mb", "finished", "versions"}


@pytest.fixture(scope="session")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    save_folder(folder / "vit", args=SMALL)
    draw_images(folder / "pictures" / "colours", count=10, noise=250)
    draw_images(folder / "pictures" / "shades", classes=("dark", "light"), count=10, seed=1, noise=250)
    (folder / "c.yaml").write_text(YAML)
    return folder


@pytest.fixture
def folder(_folder, tmp_path):
    """The working folder: `vit`, `pictures` and `c.yaml`."""
    shutil.copytree(_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch):
    """To collect garbage before each run takes longer than so small a run itself."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture(scope="session")
def _whole(_folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    shutil.copytree(_folder, home, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr("gc.collect", lambda: 0)
        compare(plan_of(), Path("out"))
    return home


@pytest.fixture
def whole(_whole, tmp_path):
    """The same after all runs, whose results lie in `out`: the plan and the results."""
    shutil.copytree(_whole, tmp_path, dirs_exist_ok=True)
    return plan_of(), read_results(Path("out"))


def norms(model, *, seed=0, share=1.0):
    """A method: train the weights of the norms, moved at random so that the seed counts."""
    if share <= 0:
        raise RecastError("share is 0", "Give more.")
    found = [module.weight for module in model.modules() if isinstance(module, nn.LayerNorm)]
    generator = torch.Generator().manual_seed(seed)
    for weight in found:
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
        weight.requires_grad_()
    classifier = model.get_classifier().weight  # no method should return it; it is not trained, nor counted
    return [*found, classifier.requires_grad_()]


@pytest.fixture
def stub_methods(monkeypatch):
    """One method, `norm`, in place of those of the package."""
    monkeypatch.setattr(candidate, "METHODS", {"norm": norms})
    monkeypatch.setattr(comparison, "LEARNING_RATES", {"norm": 1e-3})


def plan_of(text=YAML, path="c.yaml"):
    """Write the file and read it."""
    with open(path, "w") as stream:
        stream.write(text)
    return read_comparison(path)
