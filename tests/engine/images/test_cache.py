"""The files of the cache: their place and their bound, full disks, runs that are stopped or share it."""

import errno
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from fixtures.cache import ONE, age, files, right, same
from fixtures.cli_helpers import ROOT
from fixtures.images import CONFIG

from recast_cli.engine.images import cache
from recast_cli.engine.images import decode as decoding
from recast_cli.engine.images.cache import CacheWarning
from recast_cli.engine.images.decode import decode

pytest_plugins = ["fixtures.cache"]


def test_the_least_recently_used_go_first(tmp_path, cache_folder, images):
    paths = []
    for size in (32, 31, 30):
        right(tmp_path, images, CONFIG.at(size), cache_size=3 * ONE)
        paths += [path for path in cache_folder.iterdir() if path not in paths]
        age(paths[-1], 1000 - 100 * len(paths))
    decode(tmp_path, images, CONFIG.at(32), cache_size=3 * ONE)  # the oldest is used again
    right(tmp_path, images, CONFIG.at(29), cache_size=3 * ONE)
    assert not paths[1].exists()
    assert paths[0].exists()
    assert paths[2].exists()
    assert sum(path.stat().st_size for path in cache_folder.iterdir()) <= 3 * ONE
    decode(tmp_path, images, CONFIG.at(32), cache_size=ONE)  # a smaller bound counts at once
    assert files(cache_folder) == [paths[0].name]


def test_files_of_others_are_left_alone(tmp_path, cache_folder, images):
    cache_folder.mkdir()
    others = ["model.safetensors", "notes.tmp", ".notes.tmp"]
    for name in others:
        (cache_folder / name).write_bytes(bytes(10 * ONE))
        age(cache_folder / name, 10_000)
    right(tmp_path, images, CONFIG, cache_size=ONE)
    assert set(others) < set(files(cache_folder))


def test_a_set_larger_than_the_bound_is_not_cached(tmp_path, cache_folder, images):
    right(tmp_path, images[:2], CONFIG, cache_size=ONE - 1)
    kept = files(cache_folder)
    with pytest.warns(CacheWarning, match="cache_size is"):
        right(tmp_path, images, CONFIG, cache_size=ONE - 1)
    assert files(cache_folder) == kept


def test_without_a_cache_nothing_is_read_or_written(tmp_path, cache_folder, images, monkeypatch):
    decode(tmp_path, images, CONFIG)
    before = {path: path.stat() for path in cache_folder.iterdir()}
    monkeypatch.setattr(decoding, "load_cached", None)
    monkeypatch.setattr(decoding, "build", None)
    decode(tmp_path, images, CONFIG, cache_size=0)
    assert {path: path.stat() for path in cache_folder.iterdir()} == before


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "replace"])
def test_a_full_disk_costs_the_cache_and_not_the_run(call, tmp_path, cache_folder, images, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(f"os.{call}" if call != "replace" else "pathlib.Path.replace", no_space)
        with pytest.warns(CacheWarning, match=f"not cached in {cache_folder}: No space left on device") as caught:
            found = decode(tmp_path, images, CONFIG, progress=lambda *done: seen.append(done))
        assert len(caught) == 1
    assert len(seen) == 5  # each image was decoded once, also where the disk was full at the end
    same(found, decode(tmp_path, images, CONFIG, cache_size=0))
    assert files(cache_folder) == []
    right(tmp_path, images)
    assert len(files(cache_folder)) == 1


@pytest.mark.parametrize("how", ["file", "forbidden", "no home"])
def test_a_cache_that_cannot_be_made_costs_nothing_else(how, tmp_path, cache_folder, images, monkeypatch):
    if how == "file":
        cache_folder.write_text("")
    elif how == "forbidden":
        monkeypatch.setattr("os.access", lambda *arguments: False)
    else:
        monkeypatch.delenv("RECAST_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: f"~/.cache/{name}")
    with pytest.warns(CacheWarning, match="decoded images are not cached in"):
        right(tmp_path, images)
    assert not (tmp_path / "~").exists()


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RECAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.cache_folder() == tmp_path / ".cache" / "recast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(cache.cache_folder()) == "/elsewhere/recast"
    monkeypatch.setenv("RECAST_CACHE", "~/here")
    assert cache.cache_folder() == tmp_path / "here"


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_an_interrupt_stops_at_once_and_leaves_nothing(error, tmp_path, cache_folder, images, monkeypatch):
    decoded, open_image = [], decoding.open_image

    def slow(*given):
        decoded.append(given)
        time.sleep(0.01)
        return open_image(*given)

    monkeypatch.setattr(decoding, "open_image", slow)
    monkeypatch.setattr(decoding, "cores", lambda: 1)

    def stop(done, total, text):
        raise error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error):
            decode(tmp_path, images * 40, CONFIG, progress=stop)
    assert len(decoded) < 20
    assert files(cache_folder) == []


@pytest.mark.slow
def test_ctrl_c_in_a_process_leaves_nothing(tmp_path, cache_folder, images, worker):
    process = worker(tmp_path / "a.pt")
    assert process.stdout.readline() == "building\n"
    assert len(files(cache_folder)) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert files(cache_folder) == []
    assert not (tmp_path / "a.pt").exists()


WORKER = """
import select, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
import torch
from fixtures.images import CONFIG
from recast_cli.engine.images import decode as decoding
items = [decoding.Item(f"{i}.png", i) for i in range(5)]
def wait(done, total, text):
    if done == 1:
        print("building", flush=True)
        # not in one long read: a signal that comes just before it would not end it
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            pass
found = decoding.decode(Path(sys.argv[2]), items, CONFIG, progress=wait)
torch.save(found.pixels, sys.argv[3])
"""


@pytest.fixture
def worker(tmp_path):
    """Start a process that decodes `images` and waits for a line on its stdin after the first."""
    started = []

    def start(output):
        command = [sys.executable, "-c", WORKER, str(ROOT / "tests"), str(tmp_path), str(output)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.slow
def test_two_processes_that_build_at_once(tmp_path, cache_folder, images, worker):
    outputs = [tmp_path / "a.pt", tmp_path / "b.pt"]
    both = [worker(output) for output in outputs]
    assert [process.stdout.readline() for process in both] == ["building\n"] * 2
    assert len(files(cache_folder)) == 2
    for path in cache_folder.iterdir():
        age(path, 10_000)
    assert cache.trim(cache_folder, 0) == 2 * ONE  # however old: no other run takes what a live one writes
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(timeout=60) == 0
    expected = decode(tmp_path, images, CONFIG, cache_size=0).pixels
    assert all(torch.equal(torch.load(output), expected) for output in outputs)
    assert len(files(cache_folder)) == 1
    right(tmp_path, images)


@pytest.mark.slow
def test_what_a_killed_run_left_is_swept_out(tmp_path, cache_folder, images, worker):
    process = worker(tmp_path / "a.pt")
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = cache_folder.iterdir()
    assert left.suffix == ".tmp"
    right(tmp_path, images)
    assert left.exists()  # so young that its run may be about to lock it
    age(left, cache.STALE + 1)
    right(tmp_path, images)
    assert len(files(cache_folder)) == 1
    assert not left.exists()
