"""Reading tensors where they lie: safetensors files and shards of such, and what is said about damaged ones."""

import errno
import json
import os
import struct

import pytest
import torch
from fixtures.cli_helpers import recast_json, refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recast_cli.engine.errors import RecastError
from recast_cli.engine.source.checkpoint import read_weights
from recast_cli.engine.source.open import open_source
from recast_cli.engine.storage.header import read_header
from recast_cli.engine.storage.tensors import TYPES, read_stored, specs, without
from recast_cli.engine.storage.writer import writing

INDEX = "model.safetensors.index.json"


@pytest.fixture
def shards(tmp_path):
    """Two shards and their index."""
    save_file({"a.weight": torch.ones(3, 4), "spare": torch.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"b.weight": torch.zeros(3, 4)}, tmp_path / "two.safetensors")
    places = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tmp_path


def test_an_index_names_what_is_read(shards):
    tensors = read_weights(shards / INDEX)
    assert tensors.keys() == {"a.weight", "b.weight"}
    assert torch.equal(tensors["a.weight"], torch.ones(3, 4))


@pytest.mark.parametrize("content", ["{", "[]", "3", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "\xff"])
def test_an_index_that_is_none(content, shards):
    (shards / INDEX).write_bytes(content.encode("latin-1"))
    with pytest.raises(RecastError, match="no weight_map in it"):
        open_source(INDEX)


def test_an_index_of_nothing_and_no_index(shards):
    (shards / INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(RecastError, match="holds no tensors"):
        open_source(INDEX)
    with pytest.raises(RecastError, match="does not exist"):
        open_source("other.safetensors.index.json")


def test_a_missing_shard(shards):
    (shards / "two.safetensors").unlink()
    with pytest.raises(RecastError, match=rf"{INDEX} names the shard two\.safetensors, which is not there"):
        open_source(INDEX)


def test_a_shard_without_its_tensor(shards):
    save_file({"c.weight": torch.zeros(3, 4)}, shards / "two.safetensors")
    with pytest.raises(RecastError, match=rf"two\.safetensors lacks b\.weight, which {INDEX} says it holds"):
        open_source(INDEX)


@pytest.mark.parametrize(("keep", "message"), [(-1, "two.safetensors is truncated"), (3, "two.safetensors is not a")])
def test_a_shard_cut_short(keep, message, shards):
    content = (shards / "two.safetensors").read_bytes()
    (shards / "two.safetensors").write_bytes(content[:keep])
    with pytest.raises(RecastError, match=message):
        open_source(INDEX)


def test_files_that_change_after_they_were_opened(shards):
    tensors = read_weights(shards / "two.safetensors")
    content = (shards / "two.safetensors").read_bytes()
    (shards / "two.safetensors").write_bytes(content[:-1])
    with pytest.raises(RecastError, match=r"two\.safetensors is truncated: b\.weight ends early"):
        tensors["b.weight"]
    (shards / "two.safetensors").unlink()
    with pytest.raises(RecastError, match="is gone"):
        tensors["b.weight"]


def with_header(path, entry, size=16):
    raw = json.dumps({"x": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * size)
    return path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [9], "data_offsets": [0, 16]}, "x has 16 bytes where its shape needs 36"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}, "damaged"),
        ({"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}, "damaged"),
        ({"dtype": "F32", "shape": [4.5, "x"], "data_offsets": [0, 16]}, "x has no type or shape"),
        ({"shape": [4], "data_offsets": [0, 16]}, "x has no type or shape"),
        ({"dtype": "F128", "shape": [1], "data_offsets": [0, 16]}, "type F128, which recast cannot read"),
    ],
)
def test_headers_that_cannot_be(entry, message, tmp_path):
    with pytest.raises(RecastError, match=message):
        open_source(str(with_header(tmp_path / "x.safetensors", entry)))


def test_a_type_that_safetensors_does_not_have(tmp_path):
    torch.save({"x": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "x.pth")
    with pytest.raises(RecastError, match="complex128, which safetensors cannot hold"):
        open_source("x.pth")


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_read_and_written_as_safetensors_does(name, tmp_path):
    dtype = TYPES[name]
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(0, 2, (3, 5, dtype.itemsize), dtype=torch.uint8, generator=generator)
    tensor = some.view(dtype).reshape(3, 5) if dtype.itemsize > 1 else some.squeeze(2).view(dtype)
    tensors = {"x": tensor, "scalar": tensor[0, 0].clone(), "empty": tensor[:0].clone(), "byte": torch.ones(1).byte()}
    save_file(tensors, tmp_path / "theirs")
    mine = read_stored(tmp_path / "theirs")
    with writing(tmp_path / "ours", specs(mine), {}) as writer:
        for key in reversed(list(mine)):
            writer.write(key, mine[key])
        writer.finish({})
    assert read_header(tmp_path / "ours")["x"]["dtype"] == read_header(tmp_path / "theirs")["x"]["dtype"] == name
    for found in (mine, load_file(tmp_path / "ours")):
        assert found.keys() == tensors.keys()
        for key, value in tensors.items():
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
            assert found[key].reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()


def test_a_header_of_any_length(tmp_path):
    """Older files start their data at any byte."""
    for extra in range(8):
        raw = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' + b" " * extra
        data = torch.tensor([1.5, -2.0])
        (tmp_path / "x").write_bytes(struct.pack("<Q", len(raw)) + raw + data.numpy().tobytes())
        assert torch.equal(read_stored(tmp_path / "x")["x"], data)


def test_room_that_is_not_needed_is_left_blank(tmp_path):
    tensors = {"half": torch.ones(3, dtype=torch.float16), "odd": torch.ones(1, dtype=torch.int8)}
    tensors["wide"] = torch.ones(2, dtype=torch.float64)
    with writing(tmp_path / "f", specs(tensors), {"long": "x" * 100}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish({"long": "y"})
    with safe_open(tmp_path / "f", "pt") as file:
        assert json.loads(file.metadata()["recast"]) == {"long": "y"}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
    header = read_header(tmp_path / "f")
    length = struct.unpack("<Q", (tmp_path / "f").read_bytes()[:8])[0]
    assert length % 8 == 0
    for name, tensor in tensors.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0


def test_a_writer_that_is_not_given_all_leaves_nothing(tmp_path):
    def lazy():
        with writing(tmp_path / "f", specs({"a": torch.ones(2)}), {}) as writer:
            writer.finish({})

    with pytest.raises(AssertionError, match="not written: a"):
        lazy()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_while_more_is_written(tmp_path, monkeypatch):
    """A system tells an error of writing once, to whoever syncs first."""
    monkeypatch.setattr("recast_cli.engine.storage.writer.UNSYNCED", 4)
    calls = []

    def once(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", once)

    def write():
        with writing(tmp_path / "f", specs({"a": torch.ones(2), "b": torch.ones(2)}), {}) as writer:
            writer.write("a", torch.ones(2))
            writer.write("b", torch.ones(2))
            writer.finish({})

    with pytest.raises(OSError, match="No space left"):
        write()
    assert calls
    assert list(tmp_path.iterdir()) == []


def test_parts_of_stored_tensors_are_not_read(shards):
    tensors = read_weights(shards / INDEX)
    (shards / "one.safetensors").unlink()
    assert without(tensors, ["a.weight"]).keys() == {"b.weight"}
    assert specs(tensors)["a.weight"] == (torch.float32, (3, 4))


def test_the_command_takes_an_index(shards):
    value = recast_json("mimic", INDEX, "-o", "base.safetensors", "--modules", "*")
    assert value["modules"] == 2
    assert value["source_parameters"] == 24
    for name in ("one.safetensors", INDEX):
        assert f"{name} is the source itself" in refused("mimic", INDEX, "-o", name)
    assert torch.equal(load_file("one.safetensors")["a.weight"], torch.ones(3, 4))
    (shards / "two.safetensors").unlink()
    assert "names the shard two.safetensors" in refused("mimic", INDEX, "-o", "base.safetensors")
