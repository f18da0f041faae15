"""The keys of every command's `--json`, and the types of their values, are what they were: scripts read them.

tests/golden/json_keys.json has them all. A new key is fine; one that is gone, or whose value is of another type, is
not. After a change that is meant to be one, `RECAST_WRITE_GOLDEN=1 pytest tests/test_json_keys.py` writes the file
anew, and the difference belongs into docs/reference/json.md and CHANGELOG.md.
"""

import functools
import json
import os
from pathlib import Path

import pytest
from fixtures.cli_helpers import recast, recast_json

pytest_plugins = ["fixtures.cli", "fixtures.compare"]

GOLDEN = Path(__file__).parent / "golden" / "json_keys.json"
WRITE = "RECAST_WRITE_GOLDEN" in os.environ
SHARED = "--modules blocks.*.mlp.fc1 --groups 1 --templates 2"
READY = {
    "mimic": ["mimic {vit} -o new"],
    "mimic of weights alone": ["mimic {vit}/model.safetensors -o new"],
    "adapt": ["adapt -t new --data data/shades --epochs 1"],
    "adapt --adapter": ["adapt -t new --data data/shades --epochs 1 --adapter melo"],
    "eval": ["eval -t colours"],
    "eval --all --fail-under": ["eval --all --fail-under 0"],
    "eval of the source": ["eval --data data/colours --class-map map.yaml"],
    "predict": ["predict -t colours data/colours/red/000.png"],
    "export": ["export base.safetensors --format safetensors -o new.safetensors"],
    "export --task": ["export base.safetensors -t colours --format timm -o new"],
    "export of several tasks": ["export base.safetensors -t colours -t shades --format safetensors -o new"],
    "inspect a base": ["inspect base.safetensors"],
    "inspect a task": ["inspect colours"],
    "inspect a task with an adapter": ["adapt -t new --data data/shades --epochs 1 --adapter melo", "inspect new"],
    "inspect a task without its base": ["mimic {vit} -o base.safetensors --sets 2", "inspect colours"],
    "inspect tasks": ["inspect colours shades"],
    "inspect a file": ["inspect {vit}/model.safetensors"],
    "inspect several kinds": ["inspect colours {vit}/model.safetensors"],
}
"""Case -> commands, with `--json` for the last one, in a folder with a base, two tasks and their images."""
COMPARED = {
    "compare": ["compare c.yaml -o out"],
    "compare --dry-run": ["compare c.yaml -o out --dry-run"],
    "mimic --size --verify": ["mimic vit -o new --size 4x --verify images"],
    "mimic --bits --calibrate": ["mimic vit -o new --bits 4 --calibrate images"],
    "mimic --heal": [f"mimic vit -o new {SHARED} --heal images"],
    "inspect a base of --size --verify": ["mimic vit -o new --size 4x --verify images", "inspect new"],
}
"""The same in a folder with a comparison that is done, and with a smaller network."""


def tree(value):
    """Keys of mappings and types of all else; of a list the one tree of all its elements, of an empty one nothing."""
    if isinstance(value, dict):
        return {key: tree(each) for key, each in value.items()}
    if isinstance(value, list):
        return [functools.reduce(joined, map(tree, value))] if value else []
    return "null" if value is None else type(value).__name__


def joined(one, other):
    """The tree of what has either tree: `float|null` where one element has a number and another none."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **other, **{key: joined(one[key], other[key]) for key in one.keys() & other.keys()}}
    if isinstance(one, list) and isinstance(other, list):
        return [joined(one[0], other[0])] if one and other else one or other
    assert isinstance(one, str)
    assert isinstance(other, str)
    return "|".join(sorted({*one.split("|"), *other.split("|")}))


def lost(before, after, place=""):
    """Places where a key of `before` is missing in `after`, or has a value of another type there."""
    if isinstance(before, dict) and isinstance(after, dict):
        gone = [f"{place}.{key} is gone" for key in before.keys() - after.keys()]
        both = before.keys() & after.keys()
        return gone + [each for key in both for each in lost(before[key], after[key], f"{place}.{key}")]
    if isinstance(before, list) and isinstance(after, list):  # whether a class was confused depends on the machine
        return lost(before[0], after[0], f"{place}[]") if before and after else []
    return [] if before == after else [f"{place} was {before}, is {after}"]


def check(case, *commands):
    """Run the commands and hold the last one's keys against the golden ones."""
    *first, last = ([os.fspath(each) for each in command] for command in commands)
    for command in first:
        assert recast(*command).exit_code == 0
    found = tree(recast_json(*last))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    if WRITE:
        text = json.dumps({**golden, case: found}, indent=1, sort_keys=True)
        GOLDEN.write_text(text + "\n", encoding="utf-8")
    else:
        assert lost(golden[case], found) == []


@pytest.mark.parametrize("case", READY)
def test_of_a_folder_with_tasks(case, ready, vit_folder):
    (ready / "map.yaml").write_text("blue: 0\ngreen: 1\nred: 2\n")
    check(case, *(command.format(vit=vit_folder).split() for command in READY[case]))


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPARED)
def test_of_a_comparison(case, whole):
    check(case, *(command.split() for command in COMPARED[case]))


def test_the_file_has_these_cases_and_no_others():
    assert json.loads(GOLDEN.read_text(encoding="utf-8")).keys() == {*READY, *COMPARED}
