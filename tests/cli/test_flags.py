"""The command line's words for what the engine's errors and warnings speak of."""

import ast
from pathlib import Path

import pytest
from fixtures.cli_helpers import QUICK, recast, refused

from recast_cli.cli.flags import flag, with_flags
from recast_cli.cli.registry import Commands
from recast_cli.engine import errors
from recast_cli.engine.errors import OptionError, RecastError, option
from recast_cli.engine.task.options import AdaptOptions

pytest_plugins = ["fixtures.cli"]


def test_parameters_become_flags():
    error = OptionError("image_size", "0 is wrong", f"Leave it out, or give {option('data', 'DIR')}.")
    assert with_flags(error) == "--image-size 0 is wrong. Leave it out, or give --data DIR."
    assert with_flags(RecastError("Again", f"Use {option('restart', True)}.")) == "Again. Use --restart."
    assert with_flags(ValueError("image_size")) == with_flags("image_size") == "image_size"


def named():
    """The parameters that the engine's errors name."""
    for file in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("option", "OptionError"):
                yield from [first.value for first in node.args[:1] if isinstance(first, ast.Constant)]


def test_every_parameter_has_its_flag():
    known = {word for command in Commands().values() for each in command.params for word in each.opts}
    names = {*named(), *AdaptOptions.__dataclass_fields__}
    assert len(names) > 30
    assert {flag(name, None) for name in names} <= known


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("mimic", "{vit}", "-o", "new", "--bits", 9), "--bits 9 is out of range. Give 2 to 8, or 16 for float16."),
        (
            ("mimic", "{vit}", "-o", "new", "--group-size", 64),
            "--group-size goes with --bits of 2 to 8. Give --bits, too, or leave it out.",
        ),
        (
            ("mimic", "{vit}", "-o", "new", "--layout", "paper-mlp", "--sets", 2),
            "--layout paper-mlp fixes modules, groups, templates and sets. "
            "Leave out --layout, or --modules, --groups, --templates and --sets.",
        ),
        (
            ("mimic", "{vit}", "-o", "new", "--steps", 5),
            "--steps does not belong to --solver exact. Leave it out, or take another solver.",
        ),
        (
            ("adapt", "--task", "new", "--data", "data/colours", "--adapter-lr", 1),
            "--adapter-lr belongs to an adapter. Leave --adapter-lr out, or choose another --adapter.",
        ),
        (("adapt", "--task", "new", "--data", "no"), "The image folder no does not exist. Give one with --data DIR."),
        (
            ("adapt", "--task", "colours", *QUICK, "--lr", 1),
            "{here}/tasks/colours is finished with lr 0.05, now lr is 1.0. "
            "Give the old options to see its result, --restart to replace it, or another --task.",
        ),
        (
            ("adapt", "--task", "new", "--data", "data/colours", "--device", "cuda:99"),
            "--device cuda:99: no such CUDA device here. Use --device cpu, or leave it out.",
        ),
    ],
)
def test_lines_that_people_read(arguments, line, ready, vit_folder):
    arguments = [str(each).format(vit=vit_folder) for each in arguments]
    assert refused(*arguments) == f"error: {line.format(here=ready)}"


def test_a_warning_names_the_flag(fresh):
    result = recast("adapt", "--task", "colours", *QUICK, "--cache-size", 1)
    assert result.exit_code == 0
    assert "GB, and --cache-size is 1e-09 GB" in result.stderr
