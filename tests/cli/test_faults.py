"""What is not the user's fault: exit status 3, one line, and the old files as they were."""

import errno

import pytest
from fixtures.cli_helpers import QUICK, recast, refused

pytest_plugins = ["fixtures.cli"]


def fail(error):
    def function(*arguments, **options):
        raise error

    return function


def test_a_bug_is_one_line(ready, monkeypatch):
    monkeypatch.setattr("recast_cli.engine.base.file.load_base", fail(ZeroDivisionError("division\nby zero")))
    bug = "error: ZeroDivisionError: division by zero. This is a bug of recast; --debug shows where it happened."
    assert refused("eval", "--all", code=3) == bug


def test_memory_that_runs_out_is_said_in_words(ready, monkeypatch):
    monkeypatch.setattr("recast_cli.engine.base.file.load_base", fail(MemoryError()))
    assert "--batch-size" in refused("eval", "--all", code=3)


@pytest.mark.parametrize("how", ["flag", "variable"])
@pytest.mark.parametrize("error", ["ours", "bug"])
def test_debug_shows_where(how, error, ready, monkeypatch):
    if error == "bug":
        monkeypatch.setattr("recast_cli.engine.base.file.load_base", fail(ZeroDivisionError("nothing")))
    if how == "variable":
        monkeypatch.setenv("RECAST_DEBUG", "1")
    flags = ["--debug"] if how == "flag" else []
    result = recast("eval", "--task", "missing" if error == "ours" else "colours", *flags)
    assert result.exit_code == (2 if error == "ours" else 3)
    assert result.stdout == ""
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1].startswith("error: ")


full_disk = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(params=["write", "sync"])
def _disk_is_full(request, monkeypatch):
    if request.param == "write":
        monkeypatch.setattr("recast_cli.engine.storage.writer.TensorWriter.write", fail(full_disk))
    else:
        monkeypatch.setattr("os.fsync", fail(full_disk))


@pytest.mark.usefixtures("_disk_is_full")
def test_a_full_disk_leaves_the_old_base(ready, vit_folder):
    line = refused("mimic", vit_folder, "-o", "base.safetensors", code=3)
    assert line.startswith("error: base.safetensors: No space left on device. ")


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_task_and_the_same_command_goes_on(fresh, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail(full_disk))
        result = recast("adapt", "--task", "colours", *QUICK)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "resume.pt: No space left on device" in result.stderr.splitlines()[-1]
    assert list((fresh / "tasks" / "colours").iterdir()) == []
    assert recast("adapt", "--task", "colours", *QUICK).exit_code == 0


def test_a_file_too_large_for_the_disk_is_no_bug(fresh, vit_folder):
    """The same with a real limit of the system."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        line = refused("mimic", vit_folder, "-o", "base.safetensors", code=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith("error: base.safetensors: File too large")
    assert "bug" not in line
