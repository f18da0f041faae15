"""Files of every format that was ever released open, and give what they gave: README.md says how each was made.

All of it goes through the command line. expected.json has what commit 074ff19 gave. Where a file is added, not where
the code changes, `RECAST_WRITE_GOLDEN=1 pytest tests/formats` writes it anew.
"""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.cli_helpers import recast, recast_json, refused
from safetensors.torch import load_file

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
WRITE = "RECAST_WRITE_GOLDEN" in os.environ
BASES = ("base-1-first", "base-1", "base-2", "base-3", "base-5")
EXACT = ("base-1-first", "base-1", "base-2")
"""Bases whose weights are products of two numbers or copies, so that every machine has the same bits."""
MERGED = ("first", "plain", "small", "melo", "rosa", "piggyback")
"""Tasks that are plain weights once they are merged."""
TASKS = (*MERGED, "adaptformer", "clr")
PLACES = {"file", "base", "data", "directory", "bytes", "opened"}
"""Keys whose values depend on where things lie, or on other programs' versions."""
IMAGES = [f"data/colours/{name}/{number}.png" for name in ("blue", "green", "red") for number in (0, 3)]


@pytest.fixture(autouse=True)
def folder(tmp_path):
    """The files, where the commands may write."""
    shutil.copytree(HERE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    return tmp_path


def fingerprints(path):
    """Name -> type, shape, norm and a sum with signs, which tells the order of values, of every tensor."""
    found = {}
    for name, tensor in load_file(path).items():
        values = tensor.double().flatten()
        signs = torch.cos(torch.arange(len(values), dtype=torch.float64))
        found[name] = [str(tensor.dtype), list(tensor.shape), float(values.norm()), float(values @ signs)]
    return found


def digest(path):
    """SHA-256 of all tensors' bytes in the order of their names."""
    found = hashlib.sha256()
    for _, tensor in sorted(load_file(path).items()):
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def differences(before, after, place=""):
    """Places where a value is not what it was: numbers but for their last digits; new keys do not count."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in before if key not in PLACES]
        return [each for key in keys for each in differences(before[key], after.get(key), f"{place}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [each for number, (one, other) in pairs for each in differences(one, other, f"{place}[{number}]")]
    if isinstance(before, float) and isinstance(after, float):
        return [] if math.isclose(before, after, rel_tol=1e-4, abs_tol=1e-5) else [f"{place}: {before} was, {after} is"]
    return [] if before == after else [f"{place}: {before} was, {after} is"]


def shortened(value):
    """A value whose numbers have the digits that are compared, and two more."""
    if isinstance(value, dict):
        return {key: shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shortened(each) for each in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def check(case, found):
    """Hold what was found against what was expected."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {}
    if WRITE:
        cases = sorted({**expected, case: shortened(found)}.items())
        lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in cases)
        EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    else:
        assert differences(expected[case], found) == []


@pytest.mark.parametrize("name", BASES)
def test_a_base_says_the_same_of_itself(name):
    check(f"inspect {name}", recast_json("inspect", f"{name}.safetensors"))


@pytest.mark.parametrize("name", BASES)
def test_a_base_has_the_same_weights(name):
    said = recast_json("export", f"{name}.safetensors", "--format", "safetensors", "-o", "plain.safetensors")
    check(f"export {name}", {"said": said, "tensors": fingerprints("plain.safetensors")})
    if name in EXACT:
        check(f"digest {name}", digest("plain.safetensors"))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_the_same_of_itself(name):
    check(f"inspect {name}", recast_json("inspect", name))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_decides_the_same(name):
    check(f"eval {name}", recast_json("eval", "--task", name))
    check(f"predict {name}", recast_json("predict", "--task", name, *IMAGES))


@pytest.mark.parametrize("name", MERGED)
def test_a_task_has_the_same_weights(name):
    base = Path(recast_json("inspect", name)["base"]).name
    recast_json("export", base, "--task", name, "--format", "safetensors", "-o", "plain.safetensors")
    check(f"export {name}", fingerprints("plain.safetensors"))


def test_the_runs_of_a_comparison_count(folder):
    """None is done again, for which there would be no source here."""
    lines = (folder / "comparison" / "runs.jsonl").read_bytes()
    check("compare", recast_json("compare", "comparison.yaml"))
    check("compare --dry-run", recast_json("compare", "comparison.yaml", "--dry-run"))
    assert (folder / "comparison" / "runs.jsonl").read_bytes() == lines


@pytest.mark.parametrize("name", ["earlier-2", "earlier-4"])
def test_a_stream_of_an_earlier_format_is_refused(name):
    for command in (("inspect",), ("eval", "--data", "data/colours", "--base")):
        assert f"{name}.safetensors" in refused(*command, f"{name}.safetensors")


def test_the_commands_leave_the_files_as_they_are(folder):
    assert recast("eval", "--task", "plain").exit_code == 0
    for path in HERE.rglob("*.safetensors"):
        assert path.read_bytes() == (folder / path.relative_to(HERE)).read_bytes()
