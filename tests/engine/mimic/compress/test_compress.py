"""Bases in fewer bits: what is stored, what is read back, and that the rest of the tool does not notice."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import perturbed, random_images
from safetensors import safe_open
from safetensors.numpy import load_file

from recast_cli.engine.base.codec.code import Deflated
from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.layout import template_key
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.diagnose import diagnose
from recast_cli.engine.mimic.compress.compress import compress
from recast_cli.engine.mimic.compress.matrices import tensors_of_source
from recast_cli.engine.mimic.compress.plan import source_bytes
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions
from recast_cli.engine.model.attach import attach, merge
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.storage.header import read_metadata

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(request):
    return request.getfixturevalue("vit_source")


@pytest.fixture(scope="module")
def layout(source):
    return plan_layout(source.modules)


@pytest.fixture
def small(source, layout, tmp_path):
    return compress(source, layout, bits=4, group=16, path=tmp_path / "base.safetensors")


def by_hand(path):
    """Every quantised tensor of a file, as docs/reference/base-file.md says, with NumPy alone."""
    tensors = load_file(path)
    with safe_open(path, "np") as file:
        codes = json.loads(file.metadata()["recast"])["codes"]
    found = {}
    for name, code in codes.items():
        count = int(np.prod(code["shape"]))
        if code.keys() == {"shape"}:
            found[name] = tensors[name].astype(np.float32)
            continue
        if "stream" in code:
            assert len(tensors[f"{name}.codes"]) == code["stream"]
            raw, (n, rows, columns) = zlib.decompress(tensors[f"{name}.codes"].tobytes()), code["matrices"]
            count += n * (rows + columns)
            values = np.frombuffer(raw[:count], np.int8).astype(np.int32)
            wide = values == -128
            end = count + 4 * wide.sum()
            values[wide] = np.frombuffer(raw[count:end], "<i4")
            bits = np.unpackbits(np.frombuffer(raw[end:], np.uint8), bitorder="little")[: count * code["low"]]
            values = (values << code["low"]) + bits.reshape(count, code["low"]) @ (1 << np.arange(code["low"]))
            values, *steps = np.split(values, np.cumsum([n * rows * columns, n * rows]))
            values, steps = values.reshape(n, rows, columns), [np.exp2(each.reshape(n, -1) / 8) for each in steps]
            halves, state = np.zeros(values.shape, np.float32), np.zeros((n, rows), int)
            for column in range(columns):
                halves[..., column] = (state & 1) / 2
                state = state >> 1 ^ 0b101 * (state & 1) ^ 0b010 * (values[..., column] & 1)
            steps = (code["scale"] * steps[0][:, :, None]).astype(np.float32) * steps[1][:, None].astype(np.float32)
            found[name] = ((values + halves).astype(np.float32) * steps).reshape(code["shape"])
            continue
        bits, columns = code["bits"], code["columns"]
        stream = np.unpackbits(tensors[f"{name}.codes"], bitorder="little")[: count * bits]
        values = stream.reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits))
        scales = np.repeat(tensors[f"{name}.scales"].astype(np.float32), code["group"], 1)[:, :columns]
        centre = np.float32((2**bits - 1) / 2)
        found[name] = ((values.reshape(-1, columns).astype(np.float32) - centre) * scales).reshape(code["shape"])
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16, "1.5x", "3x", "4x"])
def test_the_file_can_be_read_without_this_tool(bits, source, layout, tmp_path):
    numbers = {"bits": bits} if isinstance(bits, int) else {"size": int(source_bytes(source) / float(bits[:-1]))}
    base = compress(source, layout, path=tmp_path / "base.safetensors", **numbers)
    read = by_hand(base.path)
    assert read.keys() == base.codes.keys()
    for name, value in read.items():
        assert np.array_equal(value, base.value(name).numpy()), name
    for bank in layout.banks:
        assert np.array_equal(base.templates(bank).numpy(), read[template_key(bank)])


def test_no_value_is_further_than_half_a_step_from_its_own_unless_it_was_cut_off(source, layout, small):
    for bank in layout.banks[:4]:
        code = small.codes[template_key(bank)]
        codes, scales = code.codes(template_key(bank), small.tensors)
        weights = source.tensors[f"{bank.modules[0]}.weight"].float()
        off = (small.templates(bank)[0] - weights).abs()
        steps = code.grid.spread(scales, code.columns)
        inside = (codes > 0) & (codes < 15)
        assert float((off / steps)[inside].max()) <= 0.5 + 1e-3


def test_more_bits_err_less_and_the_errors_are_those_of_the_weights(source, layout, tmp_path):
    worst = []
    for bits in (2, 4, 6, 8):
        base = compress(source, layout, bits=bits)
        module = layout.modules[5]
        weight = source.tensors[f"{module}.weight"].float()
        error = float((base.state()[f"{module}.weight"] - weight).norm() / weight.norm())
        assert base.errors[module]["relative_error"] == pytest.approx(error, rel=1e-4)
        worst.append(error)
    assert worst == sorted(worst, reverse=True)
    assert worst[0] > 0.2
    assert worst[-1] < 0.01


def test_everything_else_sees_floats(small):
    model, merged, x = attach(small), merge(small), random_images()
    with torch.no_grad():
        assert torch.allclose(model(x), merged(x), atol=1e-5)
        vector = perturbed(small)
        switched = Switcher(small, "cpu").switch(vector)
        assert torch.allclose(switched(x), merge(small, vector)(x), atol=1e-5)
    assert len(diagnose(small)) == len(small.layout.banks)
    assert all(tensor.dtype == torch.float32 for tensor in small.state().values())


def test_read_written_and_made_in_memory_it_is_the_same_file(source, layout, small, tmp_path):
    again = save_base(load_base(small.path), tmp_path / "again.safetensors")
    made = save_base(compress(source, layout, bits=4, group=16), tmp_path / "made.safetensors")
    assert again.path.read_bytes() == made.path.read_bytes() == small.path.read_bytes()


def test_the_id_is_of_what_is_stored_and_of_nothing_that_was_measured(source, layout, small, tmp_path):
    ids = {small.base_id, mimic(source, layout).base_id, compress(source, layout, bits=5).base_id}
    assert len(ids) == 3
    path = save_base(small, tmp_path / "measured.safetensors").path
    verified = {"images": 3, "agreement": 0.5, "feature_cosine": {}}
    measured = load_base(save_base(replace(small, verified=verified), path).path)
    assert measured.verified == verified
    assert measured.base_id == small.base_id


@pytest.mark.parametrize("times", [2, 3, 4])
def test_the_file_is_as_small_as_asked_and_no_smaller_than_need_be(times, source, layout, tmp_path):
    wanted, plans = source_bytes(source) // times, []
    base = compress(source, layout, size=wanted, path=tmp_path / "base.safetensors", announce=plans.append)
    assert 0.97 * wanted < base.path.stat().st_size <= wanted
    assert plans[0].nbytes == pytest.approx(wanted, rel=0.02)
    assert plans[0].codes.keys() == base.codes.keys()
    made = save_base(compress(source, layout, size=wanted, base=mimic(source, layout)), tmp_path / "made.safetensors")
    assert made.path.read_bytes() == base.path.read_bytes()


def test_values_are_nearer_than_the_nearest_of_whole_steps(source, layout):
    """On a trellis none is further than a step from its own, and the squares of errors are 20 % less."""
    base = compress(source, layout, size=source_bytes(source) // 4)
    squares, count = 0.0, 0
    for name, code in base.codes.items():
        if isinstance(code, Deflated):
            steps = code.codes(name, base.tensors)[1].spread()
            weights = dict(tensors_of_source(source, layout))[name].reshape(steps.shape)
            off = (base.value(name).reshape(steps.shape) - weights) / steps
            assert float(off.abs().max()) <= 1 + 1e-3
            squares, count = squares + float(off.square().sum()), count + off.numel()
    assert 0.7 < squares / count * 12 < 0.84


def test_a_size_that_cannot_be_met_says_what_can(source, layout):
    with pytest.raises(RecastError, match=r"smallest base of this source and layout takes [0-9,]+") as caught:
        compress(source, layout, size=10_000)
    least = int(str(caught.value).split("takes ")[1].split(" ")[0].replace(",", ""))
    compress(source, layout, size=least)
    with pytest.raises(RecastError):
        compress(source, layout, size=least - 1)


@pytest.mark.parametrize("numbers", [{"bits": 4}, {"size": 200_000}])
def test_what_is_not_finite_is_not_rounded(numbers, source, layout):
    broken = dict(source.tensors)
    broken["patch_embed.proj.weight"] = broken["patch_embed.proj.weight"].clone()
    broken["patch_embed.proj.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(RecastError, match=r"patch_embed.proj.weight has values that are NaN"):
        compress(replace(source, tensors=broken), layout, **numbers)


def test_float16_is_taken_where_it_will_do(source, layout):
    base = compress(source, layout, size=source_bytes(source))
    assert base.compression["rounded"] == 0
    assert base.base_id == compress(source, layout, bits=16).base_id


def test_a_solver_that_does_not_copy_weights_keeps_to_the_size(source, layout, tmp_path):
    wanted = source_bytes(source) // 3
    options = GradientOptions(steps=3)
    base = compress(source, layout, size=wanted, options=options, path=tmp_path / "base.safetensors")
    assert base.solver["name"] == "gradient"
    assert 0.95 * wanted < base.path.stat().st_size <= wanted


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"bits": 1}, "bits 1 is out of range"),
        ({"bits": 9}, "2 to 8, or 16"),
        ({"bits": 4, "size": 100}, "not both"),
        ({"bits": 4, "group": 4}, "^group 4 is out of range"),
        ({"group": 32}, "^group goes with bits of 2 to 8"),
        ({"group": 32, "size": 100_000}, "Give bits"),
    ],
)
def test_numbers_out_of_range(numbers, says, source, layout):
    with pytest.raises(RecastError, match=says):
        compress(source, layout, **numbers)


def test_shared_templates_are_quantised_too(source, tmp_path):
    layout = plan_layout(source.modules, groups=6, templates=1)
    base = compress(source, layout, bits=6, path=tmp_path / "base.safetensors")
    plain = mimic(source, layout)
    for bank in layout.banks:
        off = (base.templates(bank) - plain.templates(bank)).norm() / plain.templates(bank).norm()
        assert 0 < float(off) < 0.05


def test_a_damaged_stream_is_an_error_in_one_line(source, layout, tmp_path):
    base = compress(source, layout, size=source_bytes(source) // 4, path=tmp_path / "base.safetensors")
    key = template_key(layout.banks[0])
    stream = base.tensors[f"{key}.codes"].clone()
    stream[len(stream) // 2] ^= 1
    with pytest.raises(RecastError, match=f"{key} of the base is damaged"):
        replace(base, tensors={**base.tensors, f"{key}.codes": stream}).value(key)


def test_a_damaged_code_is_an_error_in_one_line(small, tmp_path):
    text = small.path.read_bytes()
    (tmp_path / "damaged").write_bytes(text.replace(b'\\"bits\\":4', b'\\"bits\\":9', 1))
    with pytest.raises(RecastError, match="codes in its metadata are damaged"):
        load_base(tmp_path / "damaged")


@pytest.mark.parametrize(("numbers", "version"), [({"bits": 4}, 2), ({"size": 200_000}, 5)])
def test_older_readers_refuse_what_they_cannot_read(numbers, version, source, layout, tmp_path):
    compress(source, layout, path=tmp_path / "base.safetensors", **numbers)
    assert read_metadata(tmp_path / "base.safetensors")["format"] == version


@pytest.mark.parametrize("earlier", [b"2", b"4"])
def test_streams_of_an_earlier_format_are_refused_and_not_misread(earlier, source, layout, tmp_path):
    path = compress(source, layout, size=200_000, path=tmp_path / "base.safetensors").path
    text = path.read_bytes()
    assert text.count(b'\\"format\\":5') == 1
    (tmp_path / "old").write_bytes(text.replace(b'\\"format\\":5', b'\\"format\\":' + earlier))
    with pytest.raises(RecastError, match="old is of an earlier format of compressed bases"):
        load_base(tmp_path / "old")


def test_small_tensors_and_integers_keep_their_values(conv_source, tmp_path):
    base = compress(conv_source, plan_layout(conv_source.modules), bits=4)
    for name, tensor in conv_source.tensors.items():
        if tensor.ndim < 2 or tensor.numel() < 1024:
            if f"{name.removesuffix('.weight')}" in base.layout.modules:
                continue
            assert torch.allclose(base.value(name).double(), tensor.double(), rtol=1e-3), name
