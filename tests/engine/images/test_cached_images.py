"""What the cache hands out: the images that decoding without one gives, whatever has changed meanwhile."""

import os
import warnings
from dataclasses import replace

import pytest
import torch
from fixtures.cache import ONE, ROW, files, right, same
from fixtures.images import CONFIG, draw

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import cache
from recast_cli.engine.images import decode as decoding
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.folders import Item

pytest_plugins = ["fixtures.cache"]


@pytest.fixture
def damaged(tmp_path, images):
    """`images` with a text, a cut one and a missing one among them."""
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


def test_a_hit_equals_a_miss_and_decodes_nothing(tmp_path, cache_folder, images, no_decoder):
    expected = decode(tmp_path, images, CONFIG, cache_size=0)
    assert not cache_folder.exists()
    same(decode(tmp_path, images, CONFIG), expected)
    (path,) = cache_folder.iterdir()
    assert path.stat().st_size == ONE
    no_decoder()
    same(decode(tmp_path, images, CONFIG), expected)
    assert files(cache_folder) == [path.name]


def test_labels_are_not_part_of_the_key(tmp_path, cache_folder, images, no_decoder):
    decode(tmp_path, images, CONFIG)
    no_decoder()
    found = decode(tmp_path, [Item(item.path, 1) for item in images], CONFIG)
    assert found.labels.tolist() == [1] * 5


def test_images_that_cannot_be_read_are_the_same_on_a_hit(tmp_path, cache_folder, damaged, monkeypatch):
    for _ in range(2):
        found = decode(tmp_path, damaged, CONFIG)
        monkeypatch.setattr(decoding, "build", None)  # the second is a hit
        same(found, decode(tmp_path, damaged, CONFIG, cache_size=0))
        assert found.skipped == ["text.png", "cut.png", "gone.png"]
        assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(files(cache_folder)) == 1
    with pytest.raises(RecastError, match=r"text\.png is not a readable image"):
        decode(tmp_path, damaged, CONFIG, on_bad_image="fail")


def test_an_image_that_can_be_read_by_now_is_read(tmp_path, cache_folder, images, monkeypatch):
    with monkeypatch.context() as patch:  # e.g. permission, which changes neither size nor time
        open_image = decoding.open_image

        def forbidden(path, transform):
            if path.name == "2.png":
                raise RecastError("no permission")
            return open_image(path, transform)

        patch.setattr(decoding, "open_image", forbidden)
        assert decode(tmp_path, images, CONFIG).skipped == ["2.png"]
    assert right(tmp_path, images).skipped == []
    assert len(files(cache_folder)) == 1


@pytest.mark.parametrize("how", ["time", "size", "deleted", "order", "fewer"])
def test_changed_images_are_noticed(how, tmp_path, cache_folder, images):
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
def test_other_preparations_have_files_of_their_own(change, size, tmp_path, cache_folder, images):
    right(tmp_path, images)
    right(tmp_path, images, replace(CONFIG, **change).at(size))
    assert len(files(cache_folder)) == 2


@pytest.mark.parametrize("mode", ["center", "border"])
def test_the_mean_counts_only_where_it_is_painted(mode, tmp_path, cache_folder, images):
    right(tmp_path, images, replace(CONFIG, crop_mode=mode))
    right(tmp_path, images, replace(CONFIG, crop_mode=mode, mean=(0.1, 0.2, 0.3)))
    assert len(files(cache_folder)) == (2 if mode == "border" else 1)


@pytest.mark.parametrize("package", ["PIL", "timm", "torchvision"])
def test_another_version_of_a_decoder_decodes_again(package, tmp_path, cache_folder, images, monkeypatch):
    decode(tmp_path, images, CONFIG)
    monkeypatch.setattr(f"{package}.__version__", "0.0.1")
    decode(tmp_path, images, CONFIG)
    assert len(files(cache_folder)) == 2


@pytest.mark.parametrize("how", ["cut", "header", "empty", "garbage", "long", "format", "key", "other metadata"])
def test_files_that_are_not_whole_or_not_ours_are_built_again(how, tmp_path, cache_folder, images, monkeypatch):
    decode(tmp_path, images, CONFIG)
    (path,) = cache_folder.iterdir()
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
    assert files(cache_folder) == [path.name]


def test_nothing_that_is_done_to_the_pixels_reaches_the_file(tmp_path, cache_folder, images):
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = decode(tmp_path, images, CONFIG)
        found.pixels.zero_()
    right(tmp_path, images)


def test_pixels_outlive_their_file(tmp_path, cache_folder, images):
    found = decode(tmp_path, images, CONFIG)
    for path in cache_folder.iterdir():
        path.unlink()
    same(found, decode(tmp_path, images, CONFIG, cache_size=0))
