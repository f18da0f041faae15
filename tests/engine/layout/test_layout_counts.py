"""What a layout counts, against literal sums, and degrees of freedom against a numerical rank."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recast_cli.engine.base.mixture import mix
from recast_cli.engine.layout.layout import Bank, Layout


@st.composite
def layouts(draw, most_layers=4, most_numel=60):
    """Layouts of up to three roles, every bank with its own n."""
    banks = []
    for role in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
        if np.prod(shape) > most_numel:
            shape = (3, 4)
        for group in range(1, draw(st.integers(1, 3)) + 1):
            layers = draw(st.integers(1, most_layers))
            names = tuple(f"r{role}.{group * 10 + layer}.fc" for layer in range(layers))
            banks.append(Bank(f"r{role}.{group}", f"r{role}.*.fc", group, names, shape, draw(st.integers(1, layers))))
    return Layout("custom", draw(st.integers(1, 3)), tuple(banks))


def random_templates(layout, numel):
    """Templates that are linearly independent with probability one: (n, numel) for every bank."""
    generator = torch.Generator().manual_seed(0)
    return {
        bank.name: torch.randn(bank.templates, numel, generator=generator, dtype=torch.float64) for bank in layout.banks
    }


@given(layouts())
def test_counts_are_the_literal_sums(layout):
    coefficients = templates = source = 0
    for bank in layout.banks:
        for _ in bank.modules:
            source += int(np.prod(bank.shape))
            for _ in range(layout.sets):
                for _ in range(bank.templates):
                    coefficients += 1
        for _ in range(bank.templates):
            templates += int(np.prod(bank.shape))
    assert layout.coefficients == coefficients
    assert layout.template_parameters == templates
    assert layout.source_parameters == source
    assert layout.savings == source - templates - coefficients
    assert len(layout.modules) == sum(len(bank.modules) for bank in layout.banks)


def test_savings_are_the_papers_formula():
    layers, per_layer, size, groups, count, sets = 12, 1, 16, 4, 2, 2
    width = layers // groups
    banks = tuple(
        Bank(f"b{g}", "b.*", g + 1, tuple(f"b.{g * width + i}" for i in range(width)), (size, size), count)
        for g in range(groups)
    )
    layout = Layout("custom", sets, banks)
    # S = L*M*d^2 - (G*n*d^2*M + L*M*n*K)
    expected = layers * per_layer * size**2 - (groups * count * size**2 * per_layer + layers * per_layer * count * sets)
    assert layout.savings == expected
    assert layout.groups == groups
    assert layout.templates == count


@pytest.mark.slow
@settings(max_examples=30)
@given(layouts(most_layers=3))
def test_degrees_of_freedom_are_the_rank_of_the_jacobian(layout):
    templates = random_templates(layout, 12)

    def weights(vector):
        found = []
        for bank in layout.banks:
            for module in bank.modules:
                place, shape = layout.slices()[module]
                found.append(mix(vector[place].reshape(shape), templates[bank.name]))
        return torch.cat(found)

    jacobian = torch.autograd.functional.jacobian(weights, torch.zeros(layout.coefficients, dtype=torch.float64))
    assert np.linalg.matrix_rank(jacobian.numpy()) == layout.degrees_of_freedom


@given(layouts())
def test_slices_cover_the_vector_once_and_in_layout_order(layout):
    covered = []
    for bank in layout.banks:
        for module in bank.modules:
            place, shape = layout.slices()[module]
            assert shape == (layout.sets, bank.templates)
            assert place.stop - place.start == shape[0] * shape[1]
            covered += range(place.start, place.stop)
    assert covered == list(range(layout.coefficients))


@given(layouts())
def test_to_dict_and_back(layout):
    assert Layout.from_dict(layout.to_dict()) == layout


def test_exact_means_as_many_templates_as_layers():
    bank = Bank("b", "b.*", 1, ("b.0", "b.1"), (4, 4), 2)
    assert bank.exact
    assert not dataclasses.replace(bank, templates=1).exact
