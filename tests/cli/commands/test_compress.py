"""`recast mimic --size`, `--bits`, `--calibrate`."""

import pytest
from fixtures.cli_helpers import QUICK, recast, recast_json, refused
from helpers import draw_images, network
from safetensors.torch import save_file

from recast_cli.engine.base.file import load_base

pytest_plugins = ["fixtures.cli"]


@pytest.fixture
def source(vit_folder):
    return vit_folder


@pytest.mark.slow
def test_the_plan_is_printed_before_and_the_file_is_as_small(source, tmp_path):
    result = recast("mimic", source, "-o", "base.safetensors", "--size", "3x")
    assert result.exit_code == 0, result.output
    assert "blocks.*.attn.qkv" in result.stderr
    assert "the rest" in result.stderr
    assert "x smaller" in result.stderr
    assert "x smaller" in result.stdout
    whole = (source / "model.safetensors").stat().st_size
    assert (tmp_path / "base.safetensors").stat().st_size <= whole / 3


def test_json_says_what_was_done_and_the_file_what_was_measured(source):
    draw_images(draw := source.parent / "images", count=3)
    value = recast_json("mimic", source, "-o", "base.safetensors", "--bits", 6, "--group-size", 16, "--verify", draw)
    assert value["compression"].keys() == {"source_bytes", "bits", "rounded", "calibrated"}
    assert 7 <= value["compression"]["bits"] < 7.1  # a scale of 16 bits for every 16 weights
    assert 0.9 * value["source_parameters"] < value["compression"]["rounded"] < value["source_parameters"]
    assert value["compression"]["calibrated"] is None
    base = load_base("base.safetensors")
    assert base.compression == value["compression"]
    assert base.base_id == value["base_id"]
    assert base.path.stat().st_size == value["bytes"]
    assert base.verified == value["verify"]
    look = recast_json("inspect", "base.safetensors")
    assert look["compression"] == value["compression"]
    assert f"{value['compression']['bits']:.2f} bits" in recast("inspect", "base.safetensors").stdout


def test_a_base_that_is_not_compressed_says_nothing_of_it(source):
    assert "compression" not in recast_json("mimic", source, "-o", "base.safetensors")


@pytest.mark.slow
def test_a_task_is_adapted_and_measured_on_a_calibrated_base(source, tmp_path):
    draw_images(tmp_path / "data" / "colours")
    made = recast_json("mimic", source, "-o", "base.safetensors", "--size", "4x", "--calibrate", "data/colours")
    assert made["compression"]["calibrated"]["images"] == 36
    learned = recast_json("adapt", "--task", "colours", *QUICK)
    assert learned["base_id"] == made["base_id"]
    assert recast_json("eval", "--all")["tasks"][0]["top1"] == learned["test_top1"]


def test_sizes(source):
    for text in ("0", "0x", "-1x", "x", "small", "4 y"):
        assert f"--size {text} is not a size" in refused("mimic", source, "-o", "new", f"--size={text}")
    line = refused("mimic", source, "-o", "new", "--size", "1kB")
    assert "1,000 bytes are too few: the smallest base of this source and layout takes" in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bits", 9), "--bits 9 is out of range"),
        (("--bits", 4, "--size", "4x"), "Give --size or --bits, not both"),
        (("--size", 4), "--size 4 has no unit. Write 4x or 4MB"),
        (("--size", "1.5"), "--size 1.5 has no unit. Write 1.5x or 1.5MB"),
        (("--group-size", 32), "Give --bits, too"),
        (("--bits", 4, "--dtype", "float16"), "--dtype float16 does not go with"),
        (("--calibrate", "images"), "Give --size or --bits"),
        (("--bits", 4, "--calibrate", "nothing"), "The folder of images nothing does not exist"),
        (("--bits", 4, "--calibrate", "empty"), "There are no images in empty"),
        (("--bits", 16, "--calibrate", "images"), "nothing is rounded"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(options, says, source, tmp_path):
    draw_images(tmp_path / "images", count=1)
    (tmp_path / "empty").mkdir()
    assert says in refused("mimic", source, "-o", "new.safetensors", *options)


def test_a_network_that_nobody_knows_cannot_be_calibrated(tmp_path):
    draw_images(tmp_path / "images", count=1)
    save_file(network().state_dict(), "weights.safetensors")
    options = ("-o", "new.safetensors", "--bits", 4)
    line = refused("mimic", "weights.safetensors", *options, "--calibrate", "images")
    assert "has no known architecture" in line
    assert recast("mimic", "weights.safetensors", *options).exit_code == 0


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(source, tmp_path, monkeypatch):
    draw_images(tmp_path / "images", count=1)
    (tmp_path / "base.safetensors").write_text("old")

    def full(self, data, place):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recast_cli.engine.storage.writer.TensorWriter.put", full)
    for more in ((), ("--calibrate", "images")):
        line = refused("mimic", source, "-o", "base.safetensors", "--bits", 4, "-q", *more, code=3)
        assert line.startswith("error: base.safetensors: No space left on device. ")
    assert (tmp_path / "base.safetensors").read_text() == "old"
