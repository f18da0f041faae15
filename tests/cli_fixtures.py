"""A working folder in which everything is already there; a test module takes it by its `pytest_plugins`."""

import shutil

import pytest
from cli_helpers import QUICK, recast
from helpers import draw_images

from recast_cli.engine.base.file import save_base


@pytest.fixture(scope="session")
def _ready(tmp_path_factory, vit_base):
    folder = tmp_path_factory.mktemp("ready")
    save_base(vit_base, folder / "base.safetensors")
    draw_images(folder / "data" / "colours")
    draw_images(folder / "data" / "shades", classes=("dark", "light"), seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for task in ("colours", "shades"):
            assert recast("adapt", "--task", task, *QUICK).exit_code == 0
    return folder


@pytest.fixture
def ready(_ready, tmp_path):
    """The working folder with a base, the images of `colours` and `shades`, and both tasks adapted."""
    shutil.copytree(_ready, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def fresh(ready):
    """The same without tasks."""
    shutil.rmtree(ready / "tasks")
    return ready
