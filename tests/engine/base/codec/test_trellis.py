"""Trellis-coded quantisation: against all paths, one by one, and against what it is known to gain."""

import itertools

import numpy as np
import pytest
import torch
from fixtures.codec import layer, output_error, random

from recast_cli.engine.base.codec import trellis
from recast_cli.engine.base.codec.trellis import LARGEST_CODE, follow, halves
from recast_cli.engine.mimic.compress import fisher as curvature
from recast_cli.engine.mimic.compress.fisher import Curvature, squares
from recast_cli.engine.mimic.compress.rounding import feed_back, in_turns, on_trellis, to_steps
from recast_cli.engine.mimic.compress.steps import curved_steps


def read(codes):
    """What stands for 0 or 1/2, by the parity-check equation: h0 * z0 + h1 * z1 = 0, h0 = 1 + D + D^3, h1 = D^2."""
    odd, z = [code % 2 for code in codes], []
    for place in range(len(codes)):
        past = [z[place - back] if place >= back else 0 for back in (1, 3)]
        z.append((sum(past) + (odd[place - 2] if place >= 2 else 0)) % 2)
    return [each / 2 for each in z]


def test_halves_are_those_of_the_parity_checks():
    codes = torch.randint(-9, 9, (4, 30), generator=torch.Generator().manual_seed(0))
    assert halves(codes).tolist() == [read(row) for row in codes.tolist()]
    assert halves(codes.float().int()[None]).shape == (1, 4, 30)


def cheapest(weights, steps, root):
    """The least that a row can cost: every choice of even and odd, errors fed back along it, in float64."""
    best = np.inf
    for odd in itertools.product((0, 1), repeat=len(weights)):
        left, cost, half = weights.astype(np.float64).copy(), 0.0, read(odd)
        for column, parity in enumerate(odd):
            value = left[column] / steps[column] - half[column]
            code = 2 * np.round((value - parity) / 2) + parity
            lost = (value - code) * steps[column] / root[column, column]
            left[column + 1 :] -= lost * root[column, column + 1 :]
            cost += lost**2
        best = min(best, cost)
    return best


@pytest.mark.parametrize("columns", [1, 2, 5, 9])
def test_without_feedback_the_path_is_the_best_of_all(columns):
    weights, steps = random(1, 6, columns), 0.3 + random(1, 6, columns, seed=1).abs()
    codes, half = on_trellis(weights, steps)
    assert torch.equal(half, halves(codes.int()))
    costs = ((codes + halves(codes.int())) - weights / steps).square().sum(-1)[0]
    for row, cost in enumerate(costs.tolist()):
        scaled = (weights / steps)[0, row].numpy()
        assert cost == pytest.approx(cheapest(scaled, np.ones(columns), np.eye(columns)), rel=1e-4)


def test_with_feedback_it_is_hardly_worse_than_the_best_of_all():
    """Paths that meet in a state have different errors to make up for, one is dropped by what it has cost so far."""
    weights, hessian, root = layer(rows=20, columns=9)
    steps = (0.5 * root[0].diagonal()).expand_as(weights)
    codes, _ = on_trellis(weights, steps, root)
    off = weights - (codes + halves(codes.int())) * steps
    least = sum(cheapest(row, steps[0, 0].numpy(), root[0].numpy().astype(np.float64)) for row in weights[0].numpy())
    assert least * (1 - 1e-3) <= output_error(off, hessian) <= 1.05 * least


@pytest.mark.parametrize("fed", [False, True])
def test_it_comes_a_decibel_nearer_for_the_same_bits(fed):
    weights, hessian, root = layer(rows=60, columns=150, samples=600)
    steps = (0.3 * root[0].diagonal()).expand_as(weights)
    hessian, root = (hessian, root) if fed else (torch.diag_embed(steps[0, :1].double() ** -2), None)
    codes, _ = on_trellis(weights, steps, root)
    plain = (weights / steps).round()
    if fed:
        plain = feed_back(weights, root, steps, lambda column, value: value.round())
    gain = output_error(weights - plain * steps, hessian)
    gain /= output_error(weights - (codes + halves(codes.int())) * steps, hessian)
    assert 0.9 < 10 * np.log10(gain) < 1.2
    bits = [entropy(each) for each in (plain, codes)]
    assert bits[1] == pytest.approx(bits[0], abs=0.03)


def entropy(codes):
    shares = codes.unique(return_counts=True)[1] / codes.numel()
    return float(-(shares * shares.log2()).sum())


def form_of(rows, seed=20):
    """Products of rows of gradients, of trace 1."""
    gradients = random(rows, 3 * rows, seed=seed) * torch.linspace(0.3, 2, rows)[:, None]
    gradients += random(1, 3 * rows, seed=seed + 1)
    return (gradients @ gradients.T / gradients.square().sum())[None]


def test_of_one_column_rows_are_fed_back_as_columns_of_one_row_are(monkeypatch):
    """There a trellis is rounding to the nearest. With a turn for each row that is GPTQ of the transposed matrix."""
    monkeypatch.setattr(curvature, "TURNS", 100)
    form, weights = form_of(12), random(1, 12, 1)
    curve = Curvature(form, torch.ones(1, 1, 1))
    inverse = torch.linalg.inv(form.double())
    root = torch.linalg.cholesky(inverse, upper=True).float()
    steps = curved_steps(curve).times(0.05).spread()
    expected = feed_back(weights.mT, root, steps.mT, lambda column, value: value.round())
    assert in_turns(weights, steps, [curve]).flatten().tolist() == expected.flatten().tolist()
    counts = torch.cat([turn.counts[0] for turn in curve.turns])
    assert torch.allclose(counts, root[0].diagonal() ** -2, rtol=1e-3)
    assert [turn.rows.tolist() for turn in curve.turns] == [[row] for row in range(12)]


def test_what_later_rows_are_asked_to_make_up_for_is_the_least(monkeypatch):
    """Of errors of one turn, the best that all later rows can do, by least squares of the whole form."""
    monkeypatch.setattr(curvature, "TURNS", 3)
    form = form_of(10)
    turns = Curvature(form, torch.ones(1, 1, 1)).turns
    assert [turn.rows.tolist() for turn in turns] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    for rows, later, counts, shares in turns:
        for place, row in enumerate(rows.tolist()):
            off = torch.zeros(10)
            off[row] = 1
            off[later] = -shares[0, :, place]
            gradient = form[0] @ off
            assert torch.allclose(gradient[later], torch.zeros(len(later)), atol=1e-6)
            assert float(off @ form[0] @ off) == pytest.approx(float(counts[0, place]), rel=1e-3)


def test_errors_of_rows_are_made_up_for_in_later_rows():
    weights, hessian, _ = layer(rows=64, columns=40)
    curve = Curvature(form_of(64), hessian.float())
    alone = Curvature(squares(curve.rows), curve.columns)

    def error(made, step):
        steps = curved_steps(made).times(step)
        codes = in_turns(weights, steps.spread(), [made])
        off = (weights - (codes + halves(codes.int())) * steps.spread())[0].double()
        return float(torch.trace(curve.rows[0].double() @ off @ hessian[0] @ off.T)), entropy(codes)

    (fed, bits), (plain, their_bits) = error(curve, 0.1), error(alone, 0.1)
    fed *= 4 ** (bits - their_bits)  # as many bits
    foreseen = torch.cat([turn.counts[0] for turn in curve.turns]).log().mean() - squares(curve.rows).log().mean()
    assert fed / plain == pytest.approx(float(foreseen.exp()), rel=0.15)
    assert fed < 0.8 * plain


@pytest.mark.parametrize("known", [False, True])
def test_several_tensors_are_rounded_as_each_is_alone(known):
    tensors = {f"blocks.{seed}.weight": layer(rows=16, seed=seed)[0][0] for seed in (3, 9, 15)}
    curves = {
        name: Curvature(form_of(16, seed), layer(seed=seed)[1].float())
        for name, seed in zip(tensors if known else (), (3, 9, 15), strict=False)
    }
    step = 0.1 if known else 0.02
    together = to_steps(tensors, step, curves)
    assert list(together) == list(tensors)
    for name, tensor in tensors.items():
        (code, stored), (alone, theirs) = together[name], to_steps({name: tensor}, step, curves)[name]
        assert code == alone
        assert all(torch.equal(value, theirs[part]) for part, value in stored.items())
        assert float((code.decode(name, stored) - tensor).norm() / tensor.norm()) < 0.5


@pytest.mark.parametrize("fed", [False, True])
def test_some_rows_at_a_time_are_all_rows(fed, monkeypatch):
    (one, _, first), (two, _, second) = layer(rows=5, seed=3), layer(rows=5, seed=9)
    weights, root = torch.cat([one, two]), torch.cat([first, second]) if fed else None
    steps = torch.full(weights.shape, 0.3)
    together = follow(weights, steps, root)
    monkeypatch.setattr(trellis, "AT_ONCE", 80)
    monkeypatch.setattr(trellis, "BLOCK", 7)
    assert torch.equal(together, follow(weights, steps, root))


def test_what_is_too_large_for_a_code_keeps_its_path():
    """The largest code is cut off to, and those after it still mean what they say."""
    weights = torch.tensor([[[3e9, 0.3, -0.8, -3e9, 0.6, 1.4, 0.9]]])
    codes, _ = on_trellis(weights, torch.ones_like(weights), None)
    assert float(codes.abs().max()) <= LARGEST_CODE + 1
    points = codes + halves(codes.int())
    assert torch.equal(halves(codes.int())[0, 0], torch.tensor(read(codes[0, 0].int().tolist())))
    inside = weights.abs() < 10
    assert float((points - weights)[inside].abs().max()) <= 1
