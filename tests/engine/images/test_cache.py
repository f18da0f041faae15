"""The cache of decoded images against decoding without one."""

import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch
from fixtures.cli_helpers import ROOT
from fixtures.images import CONFIG, draw

from recast_cli.cli.options import parse_size
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import cache
from recast_cli.engine.images import decode as decoding
from recast_cli.engine.images.cache import DEFAULT_CACHE_SIZE, CacheWarning
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.folders import Item

ROW = 3 * 32 * 32
ONE = cache.HEADER + 5 * ROW + 5
"""Bytes of the cached `images`."""


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    """A cache of the test's own."""
    path = tmp_path_factory.mktemp("cache") / "recast"
    monkeypatch.setenv("RECAST_CACHE", str(path))
    return path


@pytest.fixture
def images(tmp_path):
    """Five good images."""
    return [Item(draw(tmp_path / f"{i}.png", seed=i).name, i) for i in range(5)]


@pytest.fixture
def damaged(tmp_path, images):
    """The same with a text, a cut one and a missing one among them."""
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:400])
    return [Item("text.png", 7), *images[:2], Item("cut.png", 8), *images[2:], Item("gone.png", 9)]


@pytest.fixture
def no_decoder(monkeypatch):
    """Call it, and no image can be decoded any more."""

    def forbid():
        def fail(*arguments):
            raise AssertionError("an image was decoded")

        monkeypatch.setattr(decoding, "open_image", fail)

    return forbid


def same(found, expected):
    assert torch.equal(found.pixels, expected.pixels)
    assert found.pixels.dtype == torch.uint8
    assert torch.equal(found.labels, expected.labels)
    assert (found.paths, found.skipped) == (expected.paths, expected.skipped)


def right(root, items, *arguments, **options):
    """Decode with the cache, compare with decoding without one, and return the images."""
    found = decode(root, items, *(arguments or (CONFIG,)), **options)
    same(found, decode(root, items, *(arguments or (CONFIG,)), cache_size=0))
    return found


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def age(path, seconds):
    """Make a file look as if it was last used `seconds` ago."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_hit_equals_a_miss_and_decodes_nothing(tmp_path, folder, images, no_decoder):
    expected = decode(tmp_path, images, CONFIG, cache_size=0)
    assert not folder.exists()
    same(decode(tmp_path, images, CONFIG), expected)
    (path,) = folder.iterdir()
    assert path.stat().st_size == ONE
    no_decoder()
    same(decode(tmp_path, images, CONFIG), expected)
    assert files(folder) == [path.name]


def test_labels_are_not_part_of_the_key(tmp_path, folder, images, no_decoder):
    decode(tmp_path, images, CONFIG)
    no_decoder()
    found = decode(tmp_path, [Item(item.path, 1) for item in images], CONFIG)
    assert found.labels.tolist() == [1] * 5


def test_images_that_cannot_be_read_are_the_same_on_a_hit(tmp_path, folder, damaged, monkeypatch):
    for _ in range(2):
        found = decode(tmp_path, damaged, CONFIG)
        monkeypatch.setattr(decoding, "build", None)  # the second is a hit
        same(found, decode(tmp_path, damaged, CONFIG, cache_size=0))
        assert found.skipped == ["text.png", "cut.png", "gone.png"]
        assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(files(folder)) == 1
    with pytest.raises(RecastError, match=r"text\.png is not a readable image"):
        decode(tmp_path, damaged, CONFIG, on_bad_image="fail")


def test_an_image_that_can_be_read_by_now_is_read(tmp_path, folder, images, monkeypatch):
    with monkeypatch.context() as patch:  # e.g. permission, which changes neither size nor time
        open_image = decoding.open_image

        def forbidden(path, transform):
            if path.name == "2.png":
                raise RecastError("no permission")
            return open_image(path, transform)

        patch.setattr(decoding, "open_image", forbidden)
        assert decode(tmp_path, images, CONFIG).skipped == ["2.png"]
    assert right(tmp_path, images).skipped == []
    assert len(files(folder)) == 1


@pytest.mark.parametrize("how", ["time", "size", "deleted", "order", "fewer"])
def test_changed_images_are_noticed(how, tmp_path, folder, images):
    before = decode(tmp_path, images, CONFIG)
    if how == "time":  # bmp files of one size have one length
        images = [Item(draw(tmp_path / "a.bmp", seed=7).name, 0), *images]
        before, stat = decode(tmp_path, images, CONFIG), (tmp_path / "a.bmp").stat()
        draw(tmp_path / "a.bmp", seed=8)
        assert (tmp_path / "a.bmp").stat().st_size == stat.st_size
        os.utime(tmp_path / "a.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif how == "size":
        stat = (tmp_path / "1.png").stat()
        draw(tmp_path / "1.png", seed=9, size=(45, 40))
        os.utime(tmp_path / "1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif how == "deleted":
        (tmp_path / "1.png").unlink()
    elif how == "order":
        images = images[::-1]
    else:
        images = images[1:]
    after = right(tmp_path, images)
    assert not torch.equal(after.pixels, before.pixels)


@pytest.mark.parametrize(
    ("change", "size"),
    [({}, 24), ({"interpolation": "bilinear"}, None), ({"crop_pct": 1.0}, None), ({"crop_mode": "squash"}, None)],
)
def test_other_preparations_have_files_of_their_own(change, size, tmp_path, folder, images):
    right(tmp_path, images)
    right(tmp_path, images, replace(CONFIG, **change).at(size))
    assert len(files(folder)) == 2


@pytest.mark.parametrize("mode", ["center", "border"])
def test_the_mean_counts_only_where_it_is_painted(mode, tmp_path, folder, images):
    right(tmp_path, images, replace(CONFIG, crop_mode=mode))
    right(tmp_path, images, replace(CONFIG, crop_mode=mode, mean=(0.1, 0.2, 0.3)))
    assert len(files(folder)) == (2 if mode == "border" else 1)


@pytest.mark.parametrize("package", ["PIL", "timm", "torchvision"])
def test_another_version_of_a_decoder_decodes_again(package, tmp_path, folder, images, monkeypatch):
    decode(tmp_path, images, CONFIG)
    monkeypatch.setattr(f"{package}.__version__", "0.0.1")
    decode(tmp_path, images, CONFIG)
    assert len(files(folder)) == 2


@pytest.mark.parametrize("how", ["cut", "header", "empty", "garbage", "long", "format", "key", "other metadata"])
def test_files_that_are_not_whole_or_not_ours_are_built_again(how, tmp_path, folder, images, monkeypatch):
    decode(tmp_path, images, CONFIG)
    (path,) = folder.iterdir()
    good = path.read_bytes()
    black = good[: cache.HEADER] + bytes(5 * ROW) + good[-5:]  # would be seen, were it taken for good
    changed = {
        "cut": black[:-1],
        "header": black[:100],
        "empty": b"",
        "garbage": b"garbage" * 1000,
        "long": black + b"\0",
        "format": black.replace(b'\\"format\\":1', b'\\"format\\":2'),
        "key": black.replace(b'\\"key\\":\\"', b'\\"key\\":\\"00')[: cache.HEADER] + black[cache.HEADER :],
        "other metadata": black.replace(b'"recast"', b'"caster"'),
    }[how]
    assert changed != black
    path.write_bytes(changed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right(tmp_path, images)
    assert path.read_bytes() == good
    assert files(folder) == [path.name]


def test_nothing_that_is_done_to_the_pixels_reaches_the_file(tmp_path, folder, images):
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = decode(tmp_path, images, CONFIG)
        found.pixels.zero_()
    right(tmp_path, images)


def test_pixels_outlive_their_file(tmp_path, folder, images):
    found = decode(tmp_path, images, CONFIG)
    for path in folder.iterdir():
        path.unlink()
    same(found, decode(tmp_path, images, CONFIG, cache_size=0))


def test_the_least_recently_used_go_first(tmp_path, folder, images):
    paths = []
    for size in (32, 31, 30):
        right(tmp_path, images, CONFIG.at(size), cache_size=3 * ONE)
        paths += [path for path in folder.iterdir() if path not in paths]
        age(paths[-1], 1000 - 100 * len(paths))
    decode(tmp_path, images, CONFIG.at(32), cache_size=3 * ONE)  # the oldest is used again
    right(tmp_path, images, CONFIG.at(29), cache_size=3 * ONE)
    assert not paths[1].exists()
    assert paths[0].exists()
    assert paths[2].exists()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3 * ONE
    decode(tmp_path, images, CONFIG.at(32), cache_size=ONE)  # a smaller bound counts at once
    assert files(folder) == [paths[0].name]


def test_files_of_others_are_left_alone(tmp_path, folder, images):
    folder.mkdir()
    others = ["model.safetensors", "notes.tmp", ".notes.tmp"]
    for name in others:
        (folder / name).write_bytes(bytes(10 * ONE))
        age(folder / name, 10_000)
    right(tmp_path, images, CONFIG, cache_size=ONE)
    assert set(others) < set(files(folder))


def test_a_set_larger_than_the_bound_is_not_cached(tmp_path, folder, images):
    right(tmp_path, images[:2], CONFIG, cache_size=ONE - 1)
    kept = files(folder)
    with pytest.warns(CacheWarning, match="cache_size is"):
        right(tmp_path, images, CONFIG, cache_size=ONE - 1)
    assert files(folder) == kept


def test_without_a_cache_nothing_is_read_or_written(tmp_path, folder, images, monkeypatch):
    decode(tmp_path, images, CONFIG)
    before = {path: path.stat() for path in folder.iterdir()}
    monkeypatch.setattr(decoding, "load_cached", None)
    monkeypatch.setattr(decoding, "build", None)
    decode(tmp_path, images, CONFIG, cache_size=0)
    assert {path: path.stat() for path in folder.iterdir()} == before


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "replace"])
def test_a_full_disk_costs_the_cache_and_not_the_run(call, tmp_path, folder, images, monkeypatch):
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(f"os.{call}" if call != "replace" else "pathlib.Path.replace", no_space)
        with pytest.warns(CacheWarning, match=f"not cached in {folder}: No space left on device") as caught:
            found = decode(tmp_path, images, CONFIG, progress=lambda *done: seen.append(done))
        assert len(caught) == 1
    assert len(seen) == 5  # each image was decoded once, also where the disk was full at the end
    same(found, decode(tmp_path, images, CONFIG, cache_size=0))
    assert files(folder) == []
    right(tmp_path, images)
    assert len(files(folder)) == 1


@pytest.mark.parametrize("how", ["file", "forbidden", "no home"])
def test_a_cache_that_cannot_be_made_costs_nothing_else(how, tmp_path, folder, images, monkeypatch):
    if how == "file":
        folder.write_text("")
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
def test_an_interrupt_stops_at_once_and_leaves_nothing(error, tmp_path, folder, images, monkeypatch):
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
    assert files(folder) == []


@pytest.mark.slow
def test_ctrl_c_in_a_process_leaves_nothing(tmp_path, folder, images, worker):
    process = worker(tmp_path / "a.pt")
    assert process.stdout.readline() == "building\n"
    assert len(files(folder)) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert files(folder) == []
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
def test_two_processes_that_build_at_once(tmp_path, folder, images, worker):
    outputs = [tmp_path / "a.pt", tmp_path / "b.pt"]
    both = [worker(output) for output in outputs]
    assert [process.stdout.readline() for process in both] == ["building\n"] * 2
    assert len(files(folder)) == 2
    for path in folder.iterdir():
        age(path, 10_000)
    assert cache.trim(folder, 0) == 2 * ONE  # however old: no other run takes what a live one writes
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(timeout=60) == 0
    expected = decode(tmp_path, images, CONFIG, cache_size=0).pixels
    assert all(torch.equal(torch.load(output), expected) for output in outputs)
    assert len(files(folder)) == 1
    right(tmp_path, images)


@pytest.mark.slow
def test_what_a_killed_run_left_is_swept_out(tmp_path, folder, images, worker):
    process = worker(tmp_path / "a.pt")
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = folder.iterdir()
    assert left.suffix == ".tmp"
    right(tmp_path, images)
    assert left.exists()  # so young that its run may be about to lock it
    age(left, cache.STALE + 1)
    right(tmp_path, images)
    assert len(files(folder)) == 1
    assert not left.exists()


SIZES = {"0": 0, "123": 123, "7B": 7, "1.5k": 1500, "500 mb": 500_000_000, "10GB": 10**10, " .5tb ": 5 * 10**11}


@pytest.mark.parametrize(("text", "size"), [*SIZES.items(), ("2GiB", 2**31), (0, 0), ("10GB", DEFAULT_CACHE_SIZE)])
def test_sizes_for_people(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "ten", "1e9", "nan", "inf", "10XB", "1.2.3", "10 GB more", True])
def test_what_is_no_size(text):
    with pytest.raises(RecastError, match=r"--cache-size .*is not a size"):
        parse_size(text)
