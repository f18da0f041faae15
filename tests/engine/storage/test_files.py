"""Files that are whole or not there, and what is said about damaged ones."""

import json
import os
import stat
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from recast_cli.engine.errors import RecastError
from recast_cli.engine.storage.atomic import atomic, write_text
from recast_cli.engine.storage.digest import digest, hashed, tensors_digest
from recast_cli.engine.storage.header import FORMATS, read_header, read_metadata
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.storage.writer import write_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.int64)}
META = {"kind": "base", "format": 1}


def test_an_error_inside_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with atomic(path) as temporary:
            temporary.write_text("half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_nothing_is_seen_before_all_is_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert stat.S_IMODE(os.stat("ours").st_mode) == stat.S_IMODE(os.stat("theirs").st_mode)


def test_places_where_no_file_can_be(tmp_path):
    with pytest.raises(RecastError, match="does not exist"):
        write_text(tmp_path / "gone" / "file", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecastError, match="is a folder"):
        write_text(tmp_path / "folder", "x")


def test_equal_tensors_give_equal_bytes(tmp_path):
    write_tensors(tmp_path / "one", TENSORS, META | {"x": 1, "y": 2})
    write_tensors(tmp_path / "two", dict(reversed(TENSORS.items())), {"y": 2, "x": 1} | META)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_safetensors_itself_reads_it_and_finds_one_key(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, META | {"words": "ü"})
    with safe_open(tmp_path / "f", "pt") as file:
        assert list(file.metadata()) == ["recast"]
        assert json.loads(file.metadata()["recast"]) == META | {"words": "ü"}
        assert set(file.keys()) == {"a", "b"}
        assert torch.equal(file.get_tensor("b"), TENSORS["b"])
    assert read_metadata(tmp_path / "f") == META | {"words": "ü"}
    assert read_header(tmp_path / "f")["b"]["shape"] == [2, 3]


def header_of(raw, length=None):
    return struct.pack("<Q", len(raw) if length is None else length) + raw


ENTRY = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors"),
        (b"1234", "not a safetensors"),
        (b"x" * 100, "not a safetensors"),
        (header_of(b""), "not a safetensors"),
        (header_of(b"[1]" * 9), "not a safetensors"),
        (header_of(ENTRY, 10**12), "not a safetensors"),
        (header_of(ENTRY, len(ENTRY) + 50), "truncated in its header"),
        (header_of(ENTRY), "is truncated: .* bytes announced"),
        (header_of(ENTRY) + b"x" * 15, "is truncated: .* bytes announced"),
        (header_of(b'{"a":}' + b" " * 9), "damaged safetensors header"),
        (header_of(b'{"a":{"dtype":"F32"}}'), "damaged safetensors header"),
        (header_of(b'{"a":{"data_offsets":[]}}'), "damaged safetensors header"),
        (header_of(b'{"a":{"data_offsets":["x","y"]}}'), "damaged safetensors header"),
        (header_of(b'{"__metadata__":3}'), "damaged safetensors header"),
        (header_of(b"{\xff\xfe}" + b" " * 9), "damaged safetensors header"),
    ],
)
def test_damaged_files_are_told_apart(content, message, tmp_path):
    (tmp_path / "f").write_bytes(content)
    for read in (read_header, read_tensors, read_metadata):
        with pytest.raises(RecastError, match=message):
            read(tmp_path / "f")


def test_every_truncation_is_noticed(tmp_path):
    write_tensors(tmp_path / "whole", TENSORS, META)
    content = (tmp_path / "whole").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(RecastError, match="cut"):
            read_tensors(tmp_path / "cut")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(RecastError, match="does not exist"):
        read_header(tmp_path / "gone")
    with pytest.raises(RecastError, match="is a folder"):
        read_header(tmp_path)


def test_a_file_that_says_it_is_sound_but_is_not(tmp_path):
    (tmp_path / "f").write_bytes(header_of(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,16]}}') + b"x" * 16)
    with pytest.raises(RecastError, match="damaged"):
        read_tensors(tmp_path / "f")


@pytest.mark.parametrize("metadata", ["{", "[]", "{}", '{"format": 1}', '"x"', "3"])
def test_damaged_metadata(metadata, tmp_path):
    save_file(TENSORS, tmp_path / "f", {"recast": metadata})
    with pytest.raises(RecastError, match="metadata is damaged"):
        read_metadata(tmp_path / "f")


def test_metadata_of_others_and_of_the_future(tmp_path):
    save_file(TENSORS, tmp_path / "theirs", {"format": "pt"})
    assert read_metadata(tmp_path / "theirs") is None
    write_tensors(tmp_path / "f", TENSORS, {"kind": "base", "format": FORMATS["base"] + 1})
    with pytest.raises(RecastError, match=f"format {FORMATS['base'] + 1}"):
        read_metadata(tmp_path / "f")


def test_digests_depend_on_names_types_shapes_and_bytes(tmp_path):
    value = torch.arange(6, dtype=torch.int32)
    variants = [
        {"a": value},
        {"b": value},
        {"a": value.reshape(2, 3)},
        {"a": value.view(torch.float32)},
        {"a": value.roll(1)},
        {"a": value, "b": value},
        {},
    ]
    digests = [tensors_digest(variant) for variant in variants] + [digest({"a": hashed(value)}, "x")]
    assert len(set(digests)) == len(digests)
    assert tensors_digest({"a": value, "b": value + 1}) == tensors_digest({"b": value + 1, "a": value.clone()})
    assert tensors_digest({"a": value.reshape(2, 3).T}) == tensors_digest({"a": value.reshape(2, 3).T.contiguous()})


def test_one_element_with_any_stride_has_the_same_digest():
    column = torch.arange(12.0).reshape(3, 4)[1:2, 2:3]
    assert column.stride() == (4, 1)
    for strided in (column, column.T, torch.arange(12.0)[6::12]):
        expected = strided.flatten().tolist()
        assert tensors_digest({"a": strided}) == tensors_digest({"a": torch.tensor(expected).reshape(strided.shape)})


@pytest.mark.parametrize("kind", ["coefficients", "head", "adapter"])
def test_each_kind_of_file_has_a_format_of_its_own(kind, tmp_path):
    """A head of a format that only bases have is of a later version, not of this one."""
    write_tensors(tmp_path / "f", TENSORS, {"kind": kind, "format": FORMATS[kind] + 1})
    with pytest.raises(
        RecastError, match=f"{kind} of format {FORMATS[kind] + 1}; this recast reads up to {FORMATS[kind]}"
    ):
        read_metadata(tmp_path / "f")


def test_a_kind_that_nobody_knows_is_of_a_later_version(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, {"kind": "novelty", "format": 1})
    with pytest.raises(RecastError, match="unknown kind, novelty"):
        read_metadata(tmp_path / "f")
