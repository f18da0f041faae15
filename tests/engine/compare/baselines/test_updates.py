"""The weight changes that the methods make, against their papers' formulas in NumPy."""

import numpy as np
import pytest
import torch
from fixtures.baselines import apply, frozen, perturb
from helpers import network

QKV = "blocks.{}.attn.qkv"


@torch.no_grad()
def weight_of(module, inputs=32):
    """The matrix (out, in) that a linear module multiplies by, whatever it is made of."""
    return (module(torch.eye(inputs)) - module(torch.zeros(1, inputs))).T.double().numpy()


def changed(name, block=7, scale=0.5, seed=1, **options):
    """(weight of a block's qkv before, after its method's parameters were moved, the parameters)."""
    model = frozen()
    before = model.get_submodule(QKV.format(block)).weight.double().numpy()
    parameters = apply(name, model, **options)
    perturb(parameters, scale, seed)
    values = [parameter.detach().double().numpy() for parameter in parameters]
    return before, weight_of(model.get_submodule(QKV.format(block))), values


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_lora_xs(rank):
    before, after, values = changed("lora-xs", rank=rank)
    u, s, vt = np.linalg.svd(before, full_matrices=False)
    for row in range(rank):  # the sign that the SVD leaves open
        if vt[row, np.abs(vt[row]).argmax()] < 0:
            u[:, row], vt[row] = -u[:, row], -vt[row]
    close(after - before, u[:, :rank] @ np.diag(s[:rank]) @ values[7] @ vt[:rank])


def test_lora_xs_changes_every_module_by_its_own_square():
    model, source = frozen(), network()
    squares = apply("lora-xs", model, rank=1)
    with torch.no_grad():
        squares[3].fill_(0.1)
    for block in range(12):
        before = source.get_submodule(QKV.format(block)).weight.detach().double().numpy()
        difference = weight_of(model.get_submodule(QKV.format(block))) - before
        close(np.linalg.norm(difference), 0.1 * np.linalg.svd(before)[1][0] if block == 3 else 0)


@pytest.mark.parametrize(("entries", "of_b"), [(40, 30), (128, 96), (2, 1)])
def test_shared_lora_is_one_pruned_outer_product_for_all_layers(entries, of_b):
    before, after, (b, a) = changed("shared-lora", entries=entries)
    difference = after - before
    rows, columns = (np.flatnonzero(np.abs(difference).max(axis) > 1e-5) for axis in (1, 0))
    assert (len(rows), len(columns)) == (of_b, entries - of_b)
    wanted = np.zeros((96, 32))
    wanted[np.ix_(rows, columns)] = np.outer(b, a)
    close(difference, wanted)
    other_before, other_after, _ = changed("shared-lora", block=0, entries=entries)
    close(other_after - other_before, difference)


def test_shared_lora_of_higher_rank():
    before, after, (b, a) = changed("shared-lora", rank=3, entries=30)
    assert b.size + a.size == 30
    assert np.linalg.matrix_rank(after - before, tol=1e-5) == 3


def test_shared_lora_has_a_pair_for_every_shape():
    parameters = apply("shared-lora", frozen(), entries=100, modules=r"blocks\.\d+\.mlp\.fc[12]")
    assert len(parameters) == 4
    assert sum(parameter.numel() for parameter in parameters) == 100
    assert [parameter.numel() for parameter in parameters] == [40, 10, 10, 40]


@pytest.mark.slow
def test_lora():
    before, after, values = changed("lora", rank=3)
    a, b = values[14:16]
    close(after - before, b @ a)


@pytest.mark.slow
def test_dora():
    before, after, values = changed("dora", rank=2)
    a, b, magnitude = values[21:24]
    moved = before + b @ a
    close(after, magnitude[:, None] * moved / np.linalg.norm(moved, axis=1, keepdims=True))


def test_tinylora_stays_between_the_leading_singular_vectors():
    before, after, _ = changed("tinylora", rank=2)
    u, _, vt = np.linalg.svd(before)
    difference, left, right = after - before, u[:, :2], vt[:2]
    assert np.abs(difference).max() > 1e-3
    close(left @ left.T @ difference @ right.T @ right, difference)


def test_unilora_fills_both_factors_with_scaled_copies_of_its_floats():
    before, after, (vector,) = changed("unilora", rank=1, theta_d_length=1, scale=20)
    # one float for all 12 * (96 + 32) entries: each is the float divided by the root of their number
    close(np.abs(after - before), np.full((96, 32), vector[0] ** 2 / (12 * 128)))


def test_fourierft_has_as_many_frequencies_as_it_was_given():
    before, after, values = changed("fourierft", n_frequency=3, scaling=500.0, scale=5.0)
    spectrum = np.fft.fft2((after - before) / 500)
    # of a real matrix: each float is split between a frequency and its mirror image
    found = np.sort(np.abs(spectrum).ravel())[::-1]
    np.testing.assert_allclose(found[:6], np.repeat(np.sort(np.abs(values[7]))[::-1] / 2, 2), rtol=1e-3)
    assert found[6] < 1e-4


def test_waveft_changes_blocks_of_four_by_half_its_floats():
    before, after, values = changed("waveft", n_frequency=2, scaling=10.0)
    difference = after - before
    found = np.sort(np.abs(difference[np.abs(difference) > 1e-5]))
    np.testing.assert_allclose(found, np.sort(np.repeat(np.abs(values[7]), 4)) * 10 / 2, rtol=1e-3)


@pytest.mark.parametrize("name", ["lora-xs", "shared-lora"])
def test_weights_are_made_in_full_precision_under_autocast(name):
    model = frozen()
    perturb(apply(name, model))
    module = model.get_submodule(QKV.format(5))
    plain = module.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.weight, plain)
        assert module.weight.dtype == torch.float32
