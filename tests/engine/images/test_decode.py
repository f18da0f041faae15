"""Decoding against timm's own evaluation pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.images import CONFIG, draw
from PIL import Image
from timm.data import create_transform

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import decode as decoding
from recast_cli.engine.images.decode import decode
from recast_cli.engine.images.folders import Item, list_items
from recast_cli.engine.images.transforms import normalise


def by_timm(path, config, size=None):
    """Normalised image, as timm evaluates it."""
    shape = (3, size, size) if size else config.input_size
    transform = create_transform(
        input_size=shape,
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    return transform(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("size", [None, 24])
@pytest.mark.parametrize("change", [{}, {"interpolation": "bilinear", "crop_pct": 1.0}, {"crop_mode": "squash"}])
def test_decoding_and_normalising_is_timms_evaluation(change, size, tmp_path):
    config = replace(CONFIG, **change)
    items = [Item(draw(tmp_path / f"{i}.png", seed=i, size=(50 + 9 * i, 40)).name, i) for i in range(3)]
    found = decode(tmp_path, items, config.at(size))
    expected = torch.stack([by_timm(tmp_path / item.path, config, size) for item in items])
    torch.testing.assert_close(normalise(found.pixels, config), expected, atol=1e-6, rtol=0)
    assert found.pixels.dtype == torch.uint8
    assert found.labels.tolist() == [0, 1, 2]


MODES = {"L": "a.png", "P": "a.png", "RGBA": "a.png", "1": "a.png", "RGB": "a.JPG", "CMYK": "a.tif", "I;16": "a.png"}


@pytest.mark.parametrize(("mode", "name"), [*MODES.items(), ("P", "a.gif"), ("RGB", "a.bmp"), ("RGB", "a.webp")])
def test_every_mode_is_read_as_rgb(mode, name, tmp_path):
    path = draw(tmp_path / name, mode)
    found = normalise(decode(tmp_path, [Item(name, 0)], CONFIG).pixels, CONFIG)
    torch.testing.assert_close(found[0], by_timm(path, CONFIG), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "kind"), [("a.png", np.uint16), ("a.tif", np.uint16), ("a.pgm", np.uint16)])
def test_of_16_bits_the_high_ones_count(name, kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (40, 50)).astype(kind)
    Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray((pixels // 256).astype(np.uint8)).save(tmp_path / "8.png")
    found = decode(tmp_path, [Item(name, 0), Item("8.png", 0)], CONFIG).pixels
    torch.testing.assert_close(found[0], found[1])
    assert found[0].float().std() > 20


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_no_known_range_are_no_image(kind, tmp_path):
    Image.fromarray((np.arange(1200).reshape(30, 40) * 1e5).astype(kind)).save(tmp_path / "a.tif")
    draw(tmp_path / "b.png")
    assert decode(tmp_path, [Item("a.tif", 0), Item("b.png", 0)], CONFIG).skipped == ["a.tif"]


def test_no_shape_to_scale(tmp_path):
    """Scaled to 32 pixels it would have 30 gigabytes."""
    Image.new("1", (10_000_000, 1)).save(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert decode(tmp_path, [Item("a.png", 0), Item("b.png", 0)], CONFIG).skipped == ["a.png"]


def test_a_network_of_other_channels(tmp_path):
    with pytest.raises(RecastError, match="takes images of 1 channels"):
        decode(tmp_path, [Item("a.png", 0)], replace(CONFIG, input_size=(1, 32, 32)))


def test_links_and_hidden_folders_give_no_image_twice(tmp_path):
    for name in ("a/0.png", "a/deep/1.png", "a/.ipynb_checkpoints/0.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        draw(tmp_path / name)
    (tmp_path / "a" / "deep" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "deep")
    found = [item.path for item in list_items(tmp_path, "", ["a", "b"], ["a", "b"])]
    assert found == ["a/0.png", "a/again/1.png", "b/2.png"]


@pytest.fixture
def damaged(tmp_path):
    """Three good images, and one each that is empty, text, cut short, and gone."""
    for i in range(3):
        draw(tmp_path / f"good{i}.png", seed=i)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good0.png").read_bytes()[:400])
    names = ["good0.png", "empty.png", "good1.png", "text.png", "cut.png", "gone.png", "good2.png"]
    return [Item(name, place) for place, name in enumerate(names)]


def test_bad_images_are_skipped_counted_and_named(damaged, tmp_path):
    seen = []
    found = decode(tmp_path, damaged, CONFIG, progress=lambda done, total, text: seen.append((done, total)))
    assert found.skipped == ["empty.png", "text.png", "cut.png", "gone.png"]
    assert found.paths == ["good0.png", "good1.png", "good2.png"]
    assert found.labels.tolist() == [0, 2, 6]
    assert len(found) == len(found.pixels) == 3
    for row, path in zip(normalise(found.pixels, CONFIG), found.paths, strict=True):
        torch.testing.assert_close(row, by_timm(tmp_path / path, CONFIG), atol=1e-6, rtol=0)
    assert seen == [(done, 7) for done in range(1, 8)]


def test_bad_images_fail_where_that_is_wanted(damaged, tmp_path):
    with pytest.raises(RecastError, match=r"empty\.png is not a readable image"):
        decode(tmp_path, damaged, CONFIG, on_bad_image="fail")


def test_nothing_readable_is_an_error(damaged, tmp_path):
    with pytest.raises(RecastError, match="Not one of the 2 images"):
        decode(tmp_path, [damaged[1], damaged[3]], CONFIG)


def test_many_images_go_to_a_file_that_is_mapped(damaged, tmp_path, monkeypatch):
    expected = decode(tmp_path, damaged, CONFIG)
    monkeypatch.setattr(decoding, "IN_MEMORY", 100)
    found = decode(tmp_path, damaged, CONFIG)
    assert torch.equal(found.pixels, expected.pixels)
    assert found.paths == expected.paths
