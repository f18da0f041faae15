"""Packing, grids, rounding, and how bits are allotted: against NumPy, brute force and least squares."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recast_cli.engine.compress.budget import allocate, hull
from recast_cli.engine.compress.code import Code
from recast_cli.engine.compress.grid import Grid
from recast_cli.engine.compress.inputs import measurable, measure
from recast_cli.engine.compress.measure import Choice
from recast_cli.engine.compress.packing import BLOCK, pack, packed_bytes, unpack
from recast_cli.engine.compress.rounding import descend, feed_back, fit_scales, output_error, round_weights, shrunk


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("columns", "group"), [(64, 16), (70, 16), (9, 64)])
def test_rounding_to_the_nearest_is_numpys(bits, columns, group):
    rows, grid = random(5, columns), Grid(bits, group)
    scales = grid.widest(rows)
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

        plain, found = error(grid.widest(rows)), error(grid.search(rows))
        assert (found <= plain * (1 + 1e-5)).all()
        assert float(found.sum()) < 0.95 * float(plain.sum())


def test_a_row_of_zeros_stays_zeros():
    grid = Grid(4, 8)
    rows = torch.zeros(2, 16)
    scales = grid.search(rows)
    assert not grid.decode(grid.encode(rows, scales), scales).any()


def layer(rows=12, columns=40, samples=400, seed=0):
    """Weights, and products of inputs that hang together as those of networks do."""
    inputs = random(columns, columns, seed=seed) @ random(columns, samples, seed=seed + 1)
    inputs *= torch.linspace(0.1, 3, columns)[:, None]
    return random(1, rows, columns, seed=seed + 2), inputs, shrunk((inputs @ inputs.T)[None], 10**9)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("group", [8, 16, 64])
def test_calibrated_rounding_errs_less_than_the_nearest_on_the_inputs_themselves(bits, group):
    weights, inputs, hessian = layer()
    grid = Grid(bits, group)
    codes, scales = round_weights(weights, hessian, grid)
    plain = grid.search(weights)
    nearest = grid.decode(grid.encode(weights, plain), plain)
    rows = output_error(weights, hessian.float(), grid.decode(codes, scales))
    assert (rows <= output_error(weights, hessian.float(), nearest) * (1 + 1e-5)).all()
    outputs = [((weights[0] - each[0]) @ inputs).square().sum() for each in (grid.decode(codes, scales), nearest)]
    assert float(outputs[0]) < 0.75 * float(outputs[1])
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert torch.equal(codes, codes.round())
    assert torch.equal(scales, scales.half().float())


def test_few_pictures_count_for_little_beside_the_diagonal():
    products = torch.tensor([[[4.0, 2.0], [2.0, 9.0]]])
    few, many = shrunk(products, 2)[0], shrunk(products, 10**9)[0]
    assert few[0, 1] == pytest.approx(1.0)  # half of it: as many pictures as columns
    assert many[0, 1] == pytest.approx(2.0)
    assert few.diagonal().tolist() == pytest.approx([4.065, 9.065])
    assert torch.linalg.eigvalsh(shrunk(torch.zeros(1, 3, 3), 5)[0]).min() > 0


def test_error_feedback_is_the_papers():
    """Equations 2 and 3 of GPTQ as they stand: the inverse of what is left of H, updated after every column."""
    weights, _, hessian = layer(rows=3, columns=8)
    grid = Grid(3, 8)
    scales = grid.search(weights)
    order = hessian[0].diagonal().argsort(descending=True).numpy()
    inverse = np.linalg.inv(hessian[0].numpy()[np.ix_(order, order)])
    left = weights[0].double().numpy()[:, order].copy()
    codes = np.zeros_like(left)
    step = scales[0].double().numpy()
    for column in range(8):
        codes[:, column] = np.clip(np.round(left[:, column] / step[:, 0] + 3.5), 0, 7)
        lost = left[:, column] - (codes[:, column] - 3.5) * step[:, 0]
        left -= np.outer(lost / inverse[column, column], inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1  # never asked for again
    expected = np.empty_like(codes)
    expected[:, order] = codes
    assert feed_back(weights, hessian, grid, scales)[0].numpy().tolist() == expected.tolist()


def test_scales_are_those_of_least_squares():
    weights, _, hessian = layer(rows=2, columns=24)
    grid = Grid(4, 8)
    start = grid.search(weights)
    codes = grid.encode(weights, start)
    found = fit_scales(weights, hessian.float(), grid, codes)
    root = np.linalg.cholesky(hessian[0].numpy()).T  # |root r|^2 = r H r
    for row in range(2):
        points = codes[0, row].double().numpy() - grid.centre
        columns = np.zeros((24, 3))
        for place in range(3):
            columns[8 * place : 8 * place + 8, place] = points[8 * place : 8 * place + 8]
        best, *_ = np.linalg.lstsq(root @ columns, root @ weights[0, row].double().numpy(), rcond=None)
        assert np.allclose(found[0, row].numpy(), best, rtol=2e-3)


def test_after_the_descent_no_single_code_can_be_improved_by_one():
    weights, _, hessian = layer(rows=4, columns=16)
    grid = Grid(3, 16)
    scales = grid.search(weights)
    codes = grid.encode(weights, scales)
    for _ in range(20):
        codes = descend(weights, hessian.float(), grid, codes, scales)
    least = output_error(weights, hessian.float(), grid.decode(codes, scales))
    for column, step in itertools.product(range(16), (-1, 1)):
        other = codes.clone()
        other[..., column] = (other[..., column] + step).clamp(0, 7)
        assert (output_error(weights, hessian.float(), grid.decode(other, scales)) >= least * (1 - 1e-4)).all()


def test_groups_of_a_convolution_are_rounded_each_by_itself():
    weights, _, one = layer(seed=3)
    other, _, two = layer(seed=9)
    grid = Grid(3, 16)
    together = round_weights(torch.cat([weights, other]), torch.cat([one, two]), grid)
    alone = round_weights(other, two, grid)
    assert torch.equal(together[0][1], alone[0][0])
    assert torch.equal(together[1][1], alone[1][0])


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
    ],
)
@torch.no_grad()
def test_products_of_inputs_give_the_error_of_the_outputs(module):
    assert measurable(module)
    shape = (3, 7, 6) if isinstance(module, nn.Linear) else (3, 4, 7, 7)
    x, y = random(*shape), random(*shape, seed=1)
    found = measure(module, x, y, centred=False)
    groups = found.products.shape[0]
    kept = module.weight + 0.1 * random(*module.weight.shape, seed=2)
    off = (kept - module.weight).reshape(groups, -1, found.products.shape[-1])
    error = output_error(off, found.products, torch.zeros_like(off)).sum()
    bias, module.bias = module.bias, None
    before = module(y)
    module.weight.copy_(kept)
    assert float((module(y) - before).square().sum()) == pytest.approx(float(error), rel=1e-4)
    means = (off @ found.rounded[..., None]).flatten()
    axes = (0, 1) if isinstance(module, nn.Linear) else (0, 2, 3)
    assert torch.allclose((module(y) - before).mean(axes), means, atol=1e-5)
    centred = measure(module, x, y, centred=True)
    spread = output_error(off, centred.products, torch.zeros_like(off)).sum()
    change = module(y) - before
    assert float((change - change.mean(axes, keepdim=True)).square().sum()) == pytest.approx(float(spread), rel=1e-3)
    assert bias is not None


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def test_what_is_not_plain_is_left_to_the_nearest():
    assert not measurable(Padded(3, 3, 3))
    assert not measurable(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"))
    assert not measurable(nn.Conv2d(3, 3, 3, padding="same"))
    assert not measurable(nn.LayerNorm(3))


def ways(*pairs):
    return [Choice(Code(4, 8, (8,), 8), nbytes, error) for nbytes, error in pairs]


@given(st.integers(0, 10**6), st.integers(0, 100))
def test_the_allotment_is_within_a_step_of_the_best_of_all(seed, share):
    generator = np.random.default_rng(seed)
    choices = {}
    for name in "abcd":
        errors = np.sort(generator.uniform(0, 1, 4))[::-1]
        choices[name] = ways(*zip(np.sort(generator.integers(1, 50, 4)).tolist(), errors.tolist(), strict=True))
    least = sum(min(way.nbytes for way in each) for each in choices.values())
    most = sum(max(way.nbytes for way in each) for each in choices.values())
    budget = least + (most - least) * share // 100
    found = allocate(choices, budget)
    assert sum(way.nbytes for way in found.values()) <= budget
    fitting = [all_of for all_of in itertools.product(*choices.values()) if sum(w.nbytes for w in all_of) <= budget]
    best = min(sum(way.error for way in each) for each in fitting)
    step = max((a.error - b.error for each in choices.values() for a, b in itertools.pairwise(hull(each))), default=0)
    assert best - 1e-9 <= sum(way.error for way in found.values()) <= best + step + 1e-9


def test_a_budget_that_is_too_small_has_no_allotment():
    assert allocate({"a": ways((5, 1.0)), "b": ways((5, 1.0), (9, 0.0))}, 9) is None
    assert allocate({"a": ways((5, 1.0)), "b": ways((5, 1.0), (9, 0.0))}, 10)["b"].nbytes == 5
