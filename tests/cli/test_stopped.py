"""`adapt` stopped in the middle: the same command goes on, and ends where an unbroken run ends."""

import shutil
import signal
from pathlib import Path

import pytest
import yaml
from fixtures.cli_helpers import process, recast

pytest_plugins = ["fixtures.cli"]

COMMAND = ("adapt", "--task", "colours", "--epochs", 30)
FILES = ("coefficients.safetensors", "head.safetensors")


def stop_after_two_epochs(how):
    """Start the command as a process and stop it by a signal; exit status and what it wrote after the signal."""
    running = process(*COMMAND)
    while not running.stderr.readline().startswith("epoch  2"):
        pass
    running.send_signal(how)
    stdout, stderr = running.stdout.read(), running.stderr.read()
    return running.wait(timeout=120), stdout, stderr


def learned():
    """The bytes of what was learned, and what every epoch came to."""
    folder = Path("tasks", "colours")
    history = yaml.safe_load((folder / "task.yaml").read_text())["history"]
    return [(folder / name).read_bytes() for name in FILES], [(epoch["loss"], epoch["val_top1"]) for epoch in history]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_same_command_ends_with_the_bytes_of_an_unbroken_run(how, status, fresh):
    code, stdout, stderr = stop_after_two_epochs(how)
    assert (code, stdout) == (status, "")
    assert "Traceback" not in stderr
    assert ("\nerror: Interrupted. " in f"\n{stderr}") == (how == signal.SIGINT)
    assert not Path("tasks/colours/task.yaml").exists()
    assert recast(*COMMAND).exit_code == 0
    went_on = learned()
    assert sorted(path.name for path in Path("tasks/colours").iterdir()) == [*FILES, "task.yaml"]
    shutil.rmtree("tasks")
    assert recast(*COMMAND).exit_code == 0
    assert learned() == went_on


def test_other_options_do_not_go_on(fresh, monkeypatch):
    from recast_cli.engine.adapt import resume

    kept = resume.save_state

    def stop(*arguments):
        kept(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("recast_cli.engine.adapt.resume.save_state", stop)
    assert recast(*COMMAND).exit_code == 130
    result = recast("adapt", "--task", "colours", "--epochs", 3)
    assert result.exit_code == 2
    assert "--restart" in result.stderr
