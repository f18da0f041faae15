"""How the tests of the command line run `recast`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from recast_cli.cli.main import app

ROOT = Path(__file__).parent.parent
QUICK = ("--epochs", 1)
"""Options of adapt that the tests' own tasks are made with."""


def recast(*arguments):
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(each) for each in arguments])


def recast_json(*arguments, code=0):
    """The one JSON object that a command with `--json` prints on stdout, and nothing else there."""
    result = recast(*arguments, "--json")
    assert result.exit_code == code, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=no_constant)


def no_constant(name):
    raise AssertionError(f"{name} in JSON")


def refused(*arguments, code=2):
    """Run a command that must fail and leave everything as it was; return its one line of error."""
    before = listing()
    result = recast(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *_, last = lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [last]
    assert listing() == before
    return last


def listing(folder="."):
    """Every file and folder below `folder`, with the bytes of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


def process(*arguments, variables=None, **options):
    """Start `recast` as a process of its own, with pipes unless `options` say otherwise."""
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(variables or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "recast_cli", *(str(each) for each in arguments)]
    return subprocess.Popen(command, env=environment, **(pipes | options))


def finished(*arguments, **options):
    """Run `recast` as a process to its end: exit status, stdout and stderr."""
    running = process(*arguments, **options)
    stdout, stderr = running.communicate(timeout=120)
    return running.returncode, stdout, stderr
