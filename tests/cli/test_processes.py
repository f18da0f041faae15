"""`recast` as a real process: pipes, terminals, colours and readers that leave early."""

import json
import os
import pty
import shlex
import subprocess
import sys

import pytest
import torch
from fixtures.cli_helpers import QUICK, ROOT, finished, process
from safetensors.torch import save_file

pytest_plugins = ["fixtures.cli"]

ESCAPE = "\x1b"


def on_terminal(*arguments, **variables):
    """Run `recast` with a pseudo-terminal for stdout and stderr: exit status and all that was shown."""
    ours, theirs = pty.openpty()
    running = process(*arguments, stdout=theirs, stderr=theirs, variables={"TERM": "xterm-256color", **variables})
    os.close(theirs)
    shown = b""
    while part := read(ours):
        shown += part
    os.close(ours)
    return running.wait(timeout=120), shown.decode()


def read(handle):
    try:
        return os.read(handle, 65536)
    except OSError:  # how Linux says that the other side is closed
        return b""


@pytest.mark.slow
def test_a_pipeline_gets_json_on_stdout_and_plain_messages_on_stderr(fresh):
    code, stdout, stderr = finished("adapt", "--task", "colours", "--json", *QUICK)
    assert code == 0
    assert json.loads(stdout)["task"] == "colours"
    assert stdout.count("\n") == 1
    assert [line.split()[:2] for line in stderr.splitlines()] == [["epoch", "0"], ["epoch", "1"]]
    assert ESCAPE not in stdout + stderr


@pytest.mark.slow
def test_colours_and_bars_are_for_terminals(fresh):
    code, shown = on_terminal("adapt", "--task", "colours", *QUICK)
    assert code == 0
    assert ESCAPE in shown
    assert "test top-1" in shown


@pytest.mark.slow
def test_no_color_on_a_terminal(fresh):
    code, shown = on_terminal("adapt", "--task", "colours", *QUICK, NO_COLOR="1")
    assert code == 0
    assert ESCAPE not in shown
    assert "epoch  1" in shown


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}])
def test_an_error_is_one_plain_line_for_a_pipe(variables):
    code, stdout, stderr = finished("inspect", "missing.safetensors", variables=variables)
    assert (code, stdout) == (2, "")
    assert stderr == "error: missing.safetensors does not exist. Check the path.\n"


@pytest.mark.slow
def test_an_error_is_red_on_a_terminal_and_plain_without_colours():
    assert ESCAPE in on_terminal("inspect", "missing.safetensors")[1]
    assert on_terminal("inspect", "missing.safetensors", NO_COLOR="1") == (
        2,
        "error: missing.safetensors does not exist. Check the path.\r\n",
    )


INSPECT = ("inspect", "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), INSPECT, (*INSPECT, "--json")])
def test_a_reader_that_leaves_early_is_no_error(arguments, vit_folder):
    reader, writer = os.pipe()
    os.close(reader)
    running = process(*arguments, stdout=writer, cwd=vit_folder)
    os.close(writer)
    assert running.communicate(timeout=120)[1] == ""
    assert running.returncode == 0


@pytest.mark.slow
def test_closed_streams_are_no_error(vit_folder):
    command = shlex.join([sys.executable, "-m", "recast_cli", *INSPECT])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for closed, status in ((">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("missing.safetensors >&- 2>&-", 2)):
        result = subprocess.run(f"{command} {closed}", shell=True, cwd=vit_folder, env=environment, capture_output=True)
        assert (result.returncode, result.stderr) == (status, b"")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_names_outside_the_encoding_of_stdout_are_no_error(flags, tmp_path):
    save_file({"größe": torch.zeros(2, 3)}, tmp_path / "größe.safetensors")
    code, stdout, _ = finished("inspect", "größe.safetensors", *flags, variables={"PYTHONIOENCODING": "ascii"})
    assert code == 0
    assert "e.safetensors" in stdout
    assert not flags or json.loads(stdout)["tensors"][0]["name"] == "größe"


def test_no_line_ends_in_blanks(vit_folder):
    lines = finished(*INSPECT, cwd=vit_folder)[1].splitlines()
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [20, 40, 60])
def test_narrow_terminals_lose_nothing(columns, vit_folder):
    code, stdout, _ = finished(*INSPECT, cwd=vit_folder, variables={"COLUMNS": str(columns)})
    assert code == 0
    wide = [line for line in stdout.splitlines() if len(line) > columns]
    assert all(len(line.split()) == 2 and line.startswith("file ") for line in wide)  # a name stays whole to be copied
    assert not wide or columns == 20
    assert "…" not in stdout
