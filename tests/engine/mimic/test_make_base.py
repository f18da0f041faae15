"""The whole road from a source to a base file, from Python: what the command does, and nothing else of the process."""

import ctypes
from pathlib import Path

import pytest
import torch
from fixtures.cli_helpers import recast
from helpers import draw_images, perturbed

import recast_cli
from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.mimic.make_base import make_base
from recast_cli.engine.mimic.options import MimicOptions
from recast_cli.engine.model.switcher import Switcher

SHARED = {"modules": ("blocks.*.attn.qkv",), "groups": 2, "templates": 3}
CASES = {
    "plain": ({}, ()),
    "half": ({"dtype": "float16"}, ("--dtype", "float16")),
    "published": ({"layout": "paper-attention"}, ("--layout", "paper-attention")),
    "shared": (SHARED, ("--modules", "blocks.*.attn.qkv", "--groups", "2", "--templates", "3")),
    "small": ({"size": "3x"}, ("--size", "3x")),
    "bits": ({"bits": 4, "group_size": 32}, ("--bits", "4", "--group-size", "32")),
    "descent": (
        {"layout": "paper-attention", "solver": "gradient", "steps": 3},
        ("--layout", "paper-attention", "--solver", "gradient", "--steps", "3"),
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case == "small")) for case in CASES])
def test_it_makes_the_file_that_the_command_makes(case, vit_folder, vit_source, tmp_path):
    options, flags = CASES[case]
    base = make_base(vit_source, MimicOptions(**options), file=tmp_path / "python.safetensors")
    assert recast("mimic", vit_folder, "-o", "command.safetensors", *flags).exit_code == 0
    assert (tmp_path / "python.safetensors").read_bytes() == (tmp_path / "command.safetensors").read_bytes()
    assert base.base_id == load_base(tmp_path / "command.safetensors").base_id


@pytest.mark.parametrize("case", ["plain", pytest.param("small", marks=pytest.mark.slow), "descent"])
def test_what_verify_found_is_in_the_file_which_is_written_once(case, vit_source, tmp_path, monkeypatch):
    draw_images(tmp_path / "images", count=2)
    moved, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: moved.append(to) or replace(self, to))
    options, file = MimicOptions(**CASES[case][0]), tmp_path / "base.safetensors"
    base = make_base(vit_source, options, file=file, verify=tmp_path / "images")
    assert moved.count(file) == 1
    assert base.verified["images"] == 6
    assert base.verified.keys() == {"images", "agreement", "feature_cosine"}
    again = load_base(file)
    assert (again.verified, again.base_id) == (base.verified, base.base_id)
    plain = make_base(vit_source, options, file=tmp_path / "plain.safetensors")
    assert plain.base_id == base.base_id
    if case == "plain":
        assert base.verified["agreement"] == 1.0


def test_a_comparison_that_fails_leaves_no_base(vit_source, tmp_path, monkeypatch):
    draw_images(tmp_path / "images", count=2)

    def fail(*_, **__):
        raise RecastError("no")

    monkeypatch.setattr("recast_cli.engine.mimic.make_base.verify", fail)
    with pytest.raises(RecastError, match="no"):
        make_base(vit_source, file=tmp_path / "base.safetensors", verify=tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype int8 is unknown"),
        ({"solver": "magic"}, "solver magic is unknown"),
        ({"steps": 3}, "steps does not belong to"),
        ({"size": "4x", "bits": 4}, "size chooses the bits itself"),
        ({"size": 0}, "size 0 is not a size"),
        ({"size": "64"}, "size 64 has no unit"),
        ({"bits": 9}, "bits 9 is out of range"),
        ({"group_size": 64}, "size goes with"),
        ({"size": "4x", "dtype": "float16"}, "does not go with"),
    ],
)
def test_options_are_checked_before_anything_is_opened(options, message):
    with pytest.raises(RecastError, match=message):
        MimicOptions(**options)


def test_errors_of_the_layout_speak_of_options():
    with pytest.raises(RecastError, match="Say which to take with modules"):
        MimicOptions(groups=2).plan({"a": (4, 4)})
    with pytest.raises(RecastError, match=r"layout paper-mlp fixes .* or modules, groups, templates and sets"):
        MimicOptions(layout="paper-mlp", sets=1).plan({"a": (4, 4)})


def test_the_engine_sets_nothing_for_the_whole_process(vit_base, tmp_path, data, monkeypatch):
    """Products of float32 keep their precision, and the C library its own way with memory."""
    called = []
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: called.append("mallopt"))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", called.append)
    options = recast_cli.AdaptOptions(epochs=1)
    save_base(vit_base, tmp_path / "base.safetensors")
    task = recast_cli.adapt(vit_base, data, "colours", tmp_path / "tasks" / "colours", options)
    recast_cli.evaluate(vit_base, task, data)
    Switcher(vit_base).switch(perturbed(vit_base))
    assert called == []
