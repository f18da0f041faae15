"""Help: complete, with examples, and without torch."""

import subprocess
import sys

import pytest
from fixtures.cli_helpers import ROOT, recast
from typer.testing import CliRunner

from recast_cli.cli.main import app
from recast_cli.cli.registry import SUMMARIES, Commands

COMMANDS = ("mimic", "adapt", "eval", "predict", "compare", "export", "inspect", "demo")

WITHOUT_TORCH = """
import sys
from typer.testing import CliRunner
from recast_cli.cli.main import app
for command in [[], {commands}]:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
print({{"torch", "timm", "torchvision", "matplotlib", "numpy"}} & set(sys.modules))
"""


def test_help_says_of_each_command_what_the_command_says_of_itself():
    for name, command in Commands().items():
        assert SUMMARIES[name] == command.get_short_help_str(limit=200)


def test_an_unknown_command_is_told_its_nearest():
    result = recast("insect")
    assert result.exit_code == 2
    assert "Did you mean 'inspect'?" in result.stderr
    with pytest.raises(KeyError):
        Commands()["insect"]


def test_no_help_imports_torch():
    code = WITHOUT_TORCH.format(commands=", ".join(f"['{command}']" for command in COMMANDS))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr == ""
    assert result.stdout == "set()\n"


def test_the_list_of_commands_imports_none_of_them():
    code = """
import sys
from recast_cli.cli.main import app
try:
    app(["--help"])
finally:
    print([name for name in sys.modules if name in ("rich", "yaml") or "workspace" in name], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr == "[]\n"
    assert "  predict  " in result.stdout


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed_in_the_order_of_their_use(arguments):
    result = recast(*arguments)
    assert result.exit_code == 0
    places = [result.stdout.index(f"\n  {command}") for command in COMMANDS]
    assert places == sorted(places)
    assert "..." not in result.stdout.partition("Commands:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_and_the_common_options(command):
    text = recast(command, "--help").stdout
    assert text.count(f"      recast {command}") >= 2
    for option in ("--json", "--quiet", "--debug", "--help"):
        assert option in text


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [50, 80, 100])
def test_help_fits_its_width_but_for_examples(command, width):
    result = CliRunner().invoke(app, [command, "--help"], terminal_width=width)
    assert (
        max(
            len(line)
            for line in result.stdout.splitlines()
            if not line.startswith(("      recast ", "      torchrun "))
        )
        <= width
    )


def test_version():
    result = recast("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("recast-cli ")


@pytest.mark.slow
def test_torch_is_imported_without_collecting_garbage_and_then_left_alone():
    code = """
import gc, sys
from recast_cli.cli.startup import import_torch
frozen = []  # how many objects the collector knows to leave alone, whenever it runs
gc.callbacks.append(lambda phase, info: frozen.append(gc.get_freeze_count()))
import_torch()
print(all(frozen), gc.isenabled(), gc.get_freeze_count() > 100_000, {"torch", "timm"} <= set(sys.modules))
before = gc.get_freeze_count()
import_torch()
print(gc.get_freeze_count() == before)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["True"] * 5, result.stderr
