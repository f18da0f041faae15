"""Tasks never touch one another: the seventh leaves six as they were."""

import pytest
import torch
from helpers import draw_images

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.measure.evaluate import predict
from recast_cli.engine.task.options import AdaptOptions
from recast_cli.engine.task.task import load_task

pytestmark = pytest.mark.slow


@pytest.fixture
def six(vit_base, every_epoch_counts, tmp_path):
    """Six tasks with different classes on one base."""
    save_base(vit_base, tmp_path / "base")
    for number in range(6):
        classes = [f"c{place}" for place in range(2 + number % 3)]
        root = draw_images(tmp_path / f"data{number}", classes, 5, 16, seed=number)
        options = AdaptOptions(epochs=1, seed=number)
        task = adapt(vit_base, root, f"t{number}", tmp_path / "tasks" / f"t{number}", options, device="cpu")
        assert not torch.equal(task.vector, vit_base.vector)
    return tmp_path


def everything(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def guesses(root):
    """Class and probability of some images under each of the six tasks, everything read from disk."""
    base = load_base(root / "base")
    images = sorted((root / "data0").rglob("*.png"))[:4]
    return [predict(base, load_task(root / "tasks" / f"t{n}", base), images, device="cpu") for n in range(6)]


def test_a_seventh_task_changes_nothing_of_the_other_six(six, vit_base):
    files, before = everything(six), guesses(six)
    root = draw_images(six / "data6", ("c0", "c1", "new"), 8, 16, seed=6)
    task = adapt(
        load_base(six / "base"), root, "t6", six / "tasks" / "t6", AdaptOptions(epochs=1, lr=0.5), device="cpu"
    )
    assert not torch.equal(task.vector, vit_base.vector)
    after = everything(six)
    assert {path: after[path] for path in files} == files
    assert {path.relative_to(six).parts[:2] for path in after.keys() - files.keys()} == {
        ("tasks", "t6"),
        ("data6", "c0"),
        ("data6", "c1"),
        ("data6", "new"),
    }
    assert guesses(six) == before
