"""Packing, streams, grids, steps and rounding: against NumPy and equations as they stand."""

import itertools
import zlib

import numpy as np
import pytest
import torch
from fixtures.codec import layer, output_error, random
from hypothesis import given
from hypothesis import strategies as st

from recast_cli.engine.base.codec.deflate import deflate, inflate
from recast_cli.engine.base.codec.grid import Grid, stored
from recast_cli.engine.base.codec.packing import BLOCK, pack, packed_bytes, unpack
from recast_cli.engine.base.codec.steps import OCTAVE
from recast_cli.engine.mimic.compress.fisher import Curvature
from recast_cli.engine.mimic.compress.matrices import matrices
from recast_cli.engine.mimic.compress.rounding import feed_back
from recast_cli.engine.mimic.compress.steps import curved_steps, near, plain_steps


@given(st.integers(2, 8), st.lists(st.integers(0, 255), max_size=50))
def test_what_is_packed_comes_back_and_lies_as_numpy_packs_it(bits, values):
    values = [value % 2**bits for value in values]
    packed = pack(torch.tensor(values, dtype=torch.uint8), bits)
    stream = [value >> place & 1 for value in values for place in range(bits)]
    assert packed.tolist() == np.packbits(np.array(stream, np.uint8), bitorder="little").tolist()
    assert len(packed) == packed_bytes(len(values), bits)
    assert unpack(packed, bits, len(values)).tolist() == values


def test_packing_in_blocks_is_packing():
    values = torch.randint(0, 8, (BLOCK + 12345,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(values, 3), 3, len(values)).long(), values)


def plain_scales(rows, grid):
    """Scales with which no value is cut off."""
    return stored(grid.cut(rows).abs().amax(-1) / grid.centre)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("columns", "group"), [(64, 16), (70, 16), (9, 64)])
def test_rounding_to_the_nearest_is_numpys(bits, columns, group):
    rows, grid = random(5, columns), Grid(bits, group)
    scales = plain_scales(rows, grid)
    values = rows.numpy().astype(np.float64)
    for row, begin in itertools.product(range(5), range(0, columns, group)):
        part = values[row, begin : begin + group]
        centre = (2**bits - 1) / 2
        scale = float(np.float16(np.float32(np.abs(part).max()) / np.float32(centre)))
        points = scale * (np.arange(2**bits) - centre)
        nearest = np.abs(part[:, None] - points).argmin(1)
        assert float(scales[row, begin // group]) == scale
        found = grid.encode(rows, scales)[row, begin : begin + group].long().numpy()
        off = np.abs(points[found] - part) - np.abs(points[nearest] - part)
        assert np.abs(off).max() < 1e-5  # in the middle of two points either will do


def test_the_search_is_never_worse_than_plain_rounding_and_mostly_better():
    rows = random(200, 64)
    for bits in (2, 3, 4):
        grid = Grid(bits, 32)

        def error(scales, grid=grid):
            return (grid.decode(grid.encode(rows, scales), scales) - rows).square().unflatten(1, (2, 32)).sum(-1)

        plain, found = error(plain_scales(rows, grid)), error(grid.search(rows))
        assert (found <= plain * (1 + 1e-5)).all()
        assert float(found.sum()) < 0.95 * float(plain.sum())


def test_a_row_of_zeros_stays_zeros():
    grid = Grid(4, 8)
    rows = torch.zeros(2, 16)
    scales = grid.search(rows)
    assert not grid.decode(grid.encode(rows, scales), scales).any()


def whole(column, value):
    """Rounding to the nearest whole step."""
    return value.round()


@pytest.mark.parametrize("most", [7.0, torch.inf])
def test_error_feedback_is_the_papers(most):
    """Equations 2 and 3 of GPTQ as they stand: the inverse of what is left of H, updated after every column."""
    weights, hessian, root = layer(rows=3, columns=8)
    centre = 3.5 if most == 7 else 0.0
    steps = 0.2 + 0.3 * random(1, 3, 8, seed=5).abs()
    inverse = np.linalg.inv(hessian[0].numpy())
    left, step = weights[0].double().numpy().copy(), steps[0].double().numpy()
    expected = np.zeros_like(left)
    for column in range(8):
        code = np.round(left[:, column] / step[:, column] + centre)
        expected[:, column] = np.clip(code, 0, 7) if most == 7 else code
        lost = left[:, column] - (expected[:, column] - centre) * step[:, column]
        left -= np.outer(lost / inverse[column, column], inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1  # never asked for again

    def point(column, value):
        code = (value + centre).round()
        return (code.clamp(0, 7) if most == 7 else code) - centre

    assert (feed_back(weights, root, steps, point) + centre)[0].numpy().tolist() == expected.tolist()


def test_error_feedback_keeps_the_error_of_outputs_small():
    weights, hessian, root = layer()
    steps = curved_steps(Curvature(torch.full((1, 12), 1 / 12), hessian.float())).times(0.1).spread()
    plain = output_error(weights - (weights / steps).round() * steps, hessian)
    assert output_error(weights - feed_back(weights, root, steps, whole) * steps, hessian) < 0.5 * plain


def test_matrices_are_rounded_each_by_itself():
    (one, _, first), (two, _, second) = layer(seed=3), layer(seed=9)
    steps = torch.full((2, 12, 40), 0.3)
    together = feed_back(torch.cat([one, two]), torch.cat([first, second]), steps, whole)
    assert torch.equal(together[1:], feed_back(two, second, steps[1:], whole))


def test_no_error_counts_more_than_another_with_the_steps_of_a_curvature():
    """Of diagonal products: step^2 times what an error counts is one number; of others, with 1/u^2 for a column."""
    rows = torch.tensor([[0.5, 0.25, 0.25]])
    products = torch.tensor([[4.0, 1.0, 0.25, 9.0]])
    for form in (products, torch.diag_embed(products)):
        counts = curved_steps(Curvature(rows, form)).spread() ** 2 * rows[..., None] * products[:, None]
        assert torch.allclose(counts.log2(), torch.zeros(()), atol=2 / OCTAVE)  # to half a place in row and column each
    _, hessian, root = layer()
    rows = torch.full((1, 12), 1 / 12)
    steps = curved_steps(Curvature(rows, hessian.float())).spread()
    assert torch.allclose(steps[0, 0].log2(), (12**0.5 * root[0].diagonal()).log2(), atol=1 / OCTAVE)


def test_plain_steps_go_with_the_norm_and_with_the_root_of_rows_and_columns():
    weights = random(2, 30, 50)
    weights[1, 3] *= 16
    steps = plain_steps(torch.cat([weights, 10 * weights])).spread()
    assert torch.allclose(steps[2:].log2(), (10 * steps[:2]).log2(), atol=1 / OCTAVE)
    assert float(steps[0].mean()) == pytest.approx(float(weights[0].norm()), rel=0.05)
    rms = weights[1].square().mean(1).sqrt()
    assert torch.allclose((steps[1, 3] / steps[1, 4]).log2(), (rms[3] / rms[4]).log2() / 2, atol=1 / OCTAVE)
    assert bool((plain_steps(torch.zeros(1, 4, 4)).times(1.0).spread() > 0).all())


def test_steps_are_near_those_wanted_however_small_or_large_and_never_0():
    rows, columns = 1e-12 * torch.tensor([[1.0, 3.0, 0.2]]), 1e9 * torch.tensor([[1.0, 50.0]])
    steps = near(rows, columns).times(0.5)
    wanted = 0.5 * rows[..., None] * columns[:, None]
    assert float((steps.spread() / wanted).log2().abs().max()) <= 1 / OCTAVE + 1e-4
    wide = near(torch.tensor([[1e-30, 1.0, 1.0, 1.0, 1e30]]), torch.ones(1, 1))
    assert wide.rows.tolist() == [[-127, 0, 0, 0, 127]]
    assert bool((wide.spread() > 0).all())


@given(st.lists(st.one_of(st.integers(-200, 200), st.integers(-(2**30), 2**30)), max_size=80), st.integers(0, 300))
def test_what_is_deflated_comes_back_and_numpy_reads_it(values, scale):
    values = torch.tensor([value * scale // 100 for value in values], dtype=torch.int32)
    stream, low = deflate(values)
    assert inflate(stream, len(values), low).tolist() == values.tolist()
    raw, count = zlib.decompress(stream.numpy().tobytes()), len(values)
    found = np.frombuffer(raw[:count], np.int8).astype(np.int32)
    wide = found == -128
    end = count + 4 * wide.sum()
    found[wide] = np.frombuffer(raw[count:end], "<i4")
    bits = np.unpackbits(np.frombuffer(raw[end:], np.uint8), bitorder="little")[: count * low]
    found = (found << low) + bits.reshape(count, low) @ (1 << np.arange(low))
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize("spread", [0.6, 2, 5, 30, 60, 1000])
def test_a_stream_is_hardly_longer_than_the_entropy(spread):
    values = (spread * random(100_000)).round().int()
    values[:5] = 10 * int(spread) + 200  # what sticks out costs little
    _, counts = values.unique(return_counts=True)
    shares = counts / counts.sum()
    entropy = float(-(shares * shares.log2()).sum()) * len(values) / 8
    # Huffman codes have whole bits
    assert len(deflate(values)[0]) < entropy * (1.03 if spread > 1 else 1.12) + 100


@pytest.mark.parametrize("change", [lambda s: s[:-5], lambda s: s[:0], lambda s: torch.cat([s[:20], s[21:]])])
def test_a_damaged_stream_is_noticed(change):
    stream, low = deflate((5 * random(1000)).round())
    for damaged, count in ((change(stream), 1000), (stream, 999)):
        with pytest.raises(ValueError, match=r"Error -|length"):
            inflate(damaged, count, low)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("head.weight", (10, 32), (1, 10, 32)),
        ("conv.weight", (16, 8, 3, 3), (1, 16, 72)),
        ("pos_embed", (1, 197, 192), (1, 197, 192)),
        ("banks.a-b.templates", (2, 16, 8, 3, 3), (2, 16, 72)),
        ("one.weight", (1, 2048), (1, 1, 2048)),
    ],
)
def test_a_tensor_is_seen_as_matrices(name, shape, expected):
    assert matrices(name, shape) == expected
