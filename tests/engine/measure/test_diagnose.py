"""Diagnostics against NumPy."""

import math

import numpy as np
import pytest
import torch
from helpers import perturbed

from recast_cli.engine.base.file import save_base
from recast_cli.engine.base.header import read_base_header
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.diagnose import (
    compare_to_base,
    diagnose,
    diagnose_roles,
    similarity,
    template_distance,
    template_entropy,
)
from recast_cli.engine.mimic.decompose.decompose import mimic

TEMPLATES = torch.randn(3, 6, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def test_distance_is_the_papers_formula():
    arrays = TEMPLATES.double().numpy()
    total = 0.0
    for i in range(3):
        for j in range(3):
            if i < j:
                total += math.sqrt(((arrays[i] - arrays[j]) ** 2).sum())
    assert template_distance(TEMPLATES) == pytest.approx(total / (3 * 2), rel=1e-12)


def test_entropy_is_that_of_the_singular_values():
    entropies = []
    for array in TEMPLATES.double().numpy():
        shares = np.linalg.svd(array.reshape(6, 18), compute_uv=False)
        shares = shares / shares.sum()
        entropies.append(-sum(share * math.log(share) for share in shares if share > 0))
    assert template_entropy(TEMPLATES) == pytest.approx(sum(entropies) / 3, rel=1e-10)
    assert template_entropy(torch.eye(4)[None]) == pytest.approx(math.log(4))


def test_similarity_is_the_cosine():
    vectors = [torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    found = similarity([vector.flatten() for vector in vectors])
    for i in range(4):
        for j in range(4):
            a, b = vectors[i].double().numpy().ravel(), vectors[j].double().numpy().ravel()
            assert found[i][j] == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), rel=1e-10)


def test_what_is_undefined_is_none():
    assert template_distance(TEMPLATES[:1]) is None
    assert template_entropy(torch.zeros(2, 3, 3)) is None
    assert similarity([torch.ones(2)]) is None
    assert similarity([[0.0, 0.0], [1.0, 1.0]]) == [[None, None], [None, pytest.approx(1.0)]]


def test_a_zero_template_does_not_count_as_entropy():
    both = torch.stack([torch.eye(3), torch.zeros(3, 3)])
    assert template_entropy(both) == pytest.approx(math.log(3))


def test_every_bank_of_a_base(vit_base):
    found = diagnose(vit_base)
    assert [diagnosis.modules for diagnosis in found] == [bank.modules for bank in vit_base.layout.banks]
    assert [diagnosis.group for diagnosis in found] == [1, 2, 3, 4, 5, 6]
    for bank, diagnosis in zip(vit_base.layout.banks, found, strict=True):
        sources = [vit_base.state()[f"{module}.weight"].double().numpy() for module in bank.modules]
        assert diagnosis.frobenius == pytest.approx(np.linalg.norm(sources[0] - sources[1]) / 2)
        assert diagnosis.max_relative_error == 0.0
        assert np.allclose(diagnosis.coefficient_similarity, np.eye(2))


def test_every_role_of_a_base(vit_base):
    (role,) = diagnose_roles(vit_base)
    templates = np.concatenate([vit_base.templates(bank).double().numpy() for bank in vit_base.layout.banks])
    assert (role.role, role.shape, role.templates) == ("blocks.*.attn.qkv", (96, 32), 12)
    assert role.banks == tuple(bank.name for bank in vit_base.layout.banks)
    pairs = [np.linalg.norm(templates[i] - templates[j]) for i in range(12) for j in range(i + 1, 12)]
    assert role.frobenius == pytest.approx(sum(pairs) / (12 * 11))
    flat = templates.reshape(12, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.allclose(role.similarity, flat @ flat.T)


def test_a_role_of_one_template_has_nothing_to_compare(vit_source):
    layout = plan_layout(vit_source.modules, patterns=["blocks.0.attn.qkv", "blocks.*.mlp.fc1"], groups=12)
    roles = {role.role: role for role in diagnose_roles(mimic(vit_source, layout))}
    alone, many = roles["blocks.*.attn.qkv"], roles["blocks.*.mlp.fc1"]
    assert (alone.templates, alone.frobenius, alone.similarity) == (1, None, None)
    assert many.templates == 12
    assert many.frobenius > 0


def test_moved_is_the_distance_from_the_base(vit_base):
    vector = vit_base.vector.clone()
    place, shape = vit_base.layout.slices()["blocks.3.attn.qkv"]
    vector[place] += torch.tensor([0.0, 3.0, 4.0, 0.0])
    for change in compare_to_base(vit_base, vector):
        assert change.moved == pytest.approx(5.0 if change.module == "blocks.3.attn.qkv" else 0.0)
        assert np.shape(change.coefficients) == np.shape(change.base) == shape


def test_coefficients_are_those_of_the_module_set_by_set(conv_base):
    vector = perturbed(conv_base)
    changes = {change.module: change for change in compare_to_base(conv_base, vector)}
    assert list(changes) == list(conv_base.layout.modules)
    for module, (place, shape) in conv_base.layout.slices().items():
        now, before = vector[place].reshape(shape), conv_base.coefficients(module)
        assert torch.equal(torch.tensor(changes[module].coefficients), now)
        assert torch.equal(torch.tensor(changes[module].base), before)
        assert changes[module].moved == pytest.approx(float((now.double() - before.double()).norm()))


def test_a_header_does_for_coefficients(vit_base, tmp_path):
    save_base(vit_base, tmp_path / "base")
    header = read_base_header(tmp_path / "base")
    assert (header.base_id, header.source, header.layout) == (vit_base.base_id, vit_base.source, vit_base.layout)
    assert torch.equal(torch.tensor(header.mimicked()), vit_base.vector)
    vector = perturbed(vit_base)
    assert compare_to_base(header, vector.tolist()) == compare_to_base(vit_base, vector)
