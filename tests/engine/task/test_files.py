"""What is said about the files of a base and of a task that are missing, damaged, or of something else."""

import dataclasses
import shutil

import pytest
import torch
import yaml
from safetensors.torch import save_file

from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.storage.header import FORMATS, read_metadata
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.storage.writer import write_tensors
from recast_cli.engine.task.task import Task, load_task, save_task


@pytest.fixture
def task(vit_base, tmp_path):
    """The folder of a task of two classes that was never trained."""
    record = {
        "format": FORMATS["task"],
        "data": "data/t",
        "name": "t",
        "base_id": vit_base.base_id,
        "classes": ["ä", "b"],
        "image_size": 32,
        "split": {"kind": "hash", "test_images": []},
        "options": {},
        "metrics": {},
    }
    folder = tmp_path / "tasks" / "t"
    save_task(Task("t", vit_base.base_id, vit_base.vector, torch.ones(2, 32), torch.zeros(2), record), folder)
    return folder


def test_what_is_saved_is_loaded(task, vit_base):
    loaded = load_task(task, vit_base)
    assert loaded.classes == ["ä", "b"]
    assert torch.equal(loaded.vector, vit_base.vector)
    assert torch.equal(loaded.weight, torch.ones(2, 32))
    assert loaded.image_size == 32
    assert sorted(path.name for path in task.iterdir()) == ["coefficients.safetensors", "head.safetensors", "task.yaml"]
    assert read_metadata(task / "coefficients.safetensors")["base_id"] == vit_base.base_id


def test_a_task_of_another_base_is_refused(task, vit_source):
    other = mimic(vit_source, plan_layout(vit_source.modules, groups=4))
    with pytest.raises(RecastError, match=f"but .* is base {other.base_id}"):
        load_task(task, other)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task.yaml", None, "holds no finished task"),
        ("task.yaml", b"a: [", "not valid YAML"),
        ("task.yaml", b"\xff\xfe\x00", "not valid YAML"),
        ("task.yaml", b"", "not a task's record"),
        ("task.yaml", b"- 1", "not a task's record"),
        ("task.yaml", b"name: t", "not a task's record"),
        ("head.safetensors", None, "does not exist"),
        ("head.safetensors", b"", "not a safetensors file"),
        ("coefficients.safetensors", None, "does not exist"),
    ],
)
def test_missing_and_damaged_files(name, content, message, task):
    (task / name).unlink()
    if content is not None:
        (task / name).write_bytes(content)
    with pytest.raises(RecastError, match=message):
        load_task(task)


def test_files_of_another_kind_or_base(task, vit_base, tmp_path):
    head, coefficients = task / "head.safetensors", task / "coefficients.safetensors"
    kept = head.read_bytes()
    shutil.copy(coefficients, head)
    with pytest.raises(RecastError, match="is a coefficients file"):
        load_task(task)
    save_file(read_tensors(head), head)
    with pytest.raises(RecastError, match="is a safetensors file"):
        load_task(task)
    head.write_bytes(kept)
    tensors, metadata = read_tensors(head), read_metadata(head)
    write_tensors(head, tensors, metadata | {"base_id": "0" * 32})
    with pytest.raises(RecastError, match="belongs to base 0000"):
        load_task(task)
    write_tensors(head, tensors, {"kind": "head", "format": 1})
    with pytest.raises(RecastError, match="belongs to base None"):
        load_task(task)
    write_tensors(head, {"weight": tensors["weight"]}, metadata)
    with pytest.raises(RecastError, match=r"bias.* is missing"):
        load_task(task)
    write_tensors(head, tensors | {"weight": torch.ones(3, 32)}, metadata)
    with pytest.raises(RecastError, match="3 rows and the record 2 classes"):
        load_task(task)


def test_a_vector_of_another_length(task, vit_base):
    path = task / "coefficients.safetensors"
    write_tensors(path, {"coefficients": torch.ones(47)}, read_metadata(path))
    with pytest.raises(RecastError, match="47 coefficients, the base wants 48"):
        load_task(task, vit_base)


def test_a_task_that_is_not_there_names_those_that_are(task):
    with pytest.raises(RecastError, match="Tasks here: t"):
        load_task(task.parent / "u")


def test_a_record_of_the_future(task):
    record = yaml.safe_load((task / "task.yaml").read_text())
    (task / "task.yaml").write_text(yaml.safe_dump(record | {"format": FORMATS["task"] + 1}))
    with pytest.raises(RecastError, match="Upgrade"):
        load_task(task)


def test_files_that_are_no_base(task, vit_base, tmp_path):
    with pytest.raises(RecastError, match="is a task's head file"):
        load_base(task / "head.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(RecastError, match="not a base"):
        load_base(tmp_path / "other")
    with pytest.raises(RecastError, match="does not exist"):
        load_base(tmp_path / "gone")


@pytest.mark.parametrize("change", [{"layout": None}, {"layout": {}}, {"layout": {"name": "x", "sets": 1, "banks": 3}}])
def test_a_base_whose_layout_is_damaged(change, vit_base, tmp_path):
    save_base(vit_base, tmp_path / "base")
    write_tensors(tmp_path / "base", vit_base.tensors, read_metadata(tmp_path / "base") | change)
    with pytest.raises(RecastError, match=r"layout .* is damaged"):
        load_base(tmp_path / "base")


@pytest.mark.parametrize("key", ["base_id", "architecture", "source", "source_digest", "errors", "solver", "aliases"])
def test_a_base_without_part_of_its_metadata(key, vit_base, tmp_path):
    save_base(vit_base, tmp_path / "base")
    metadata = read_metadata(tmp_path / "base")
    del metadata[key]
    write_tensors(tmp_path / "base", vit_base.tensors, metadata)
    with pytest.raises(RecastError, match="metadata is damaged"):
        load_base(tmp_path / "base")


def test_a_base_that_lacks_a_tensor_of_its_layout(vit_base, tmp_path):
    for name in ("banks.blocks.0-1.attn.qkv.templates", "coefficients.blocks.3.attn.qkv"):
        tensors = {key: tensor for key, tensor in vit_base.tensors.items() if key != name}
        save_base(dataclasses.replace(vit_base, tensors=tensors), tmp_path / "base")
        with pytest.raises(RecastError, match=f"{name} is missing"):
            load_base(tmp_path / "base")
