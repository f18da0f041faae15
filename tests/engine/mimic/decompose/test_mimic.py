"""Mimicking a source: what the base holds, and what of it is exact."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from helpers import perturbed

from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions, VaeOptions
from recast_cli.engine.storage.writer import TensorWriter


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_a_default_base_gives_the_source_back_to_the_bit(kind, request):
    source, base = request.getfixturevalue(f"{kind}_source"), request.getfixturevalue(f"{kind}_base")
    state = base.state()
    assert state.keys() == source.tensors.keys()
    for name, tensor in source.tensors.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    assert all(error == {"relative_error": 0.0, "cosine": 1.0} for error in base.errors.values())


def test_the_file_gives_the_same_base_back(vit_base, tmp_path):
    path = tmp_path / "base.safetensors"
    save_base(vit_base, path)
    loaded = load_base(path)
    for field in dataclasses.fields(vit_base):
        if field.name not in ("tensors", "path"):
            assert getattr(loaded, field.name) == getattr(vit_base, field.name), field.name
    assert loaded.path == path
    assert loaded.tensors.keys() == vit_base.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in vit_base.tensors.items())


def test_equal_calls_give_equal_files(vit_source, vit_base, tmp_path):
    again = mimic(vit_source, plan_layout(vit_source.modules, layout="paper-attention"))
    assert again.base_id == vit_base.base_id
    save_base(vit_base, tmp_path / "one")
    save_base(again, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_id_depends_on_layout_and_weights(vit_source, vit_base):
    other = mimic(vit_source, plan_layout(vit_source.modules, groups=4))
    assert other.base_id != vit_base.base_id
    # the same tensors in another order of banks would read a task's vector wrongly
    turned = dataclasses.replace(vit_base.layout, banks=vit_base.layout.banks[::-1])
    assert mimic(vit_source, turned).base_id != vit_base.base_id
    tensors = dict(vit_source.tensors)
    tensors["head.bias"] = tensors["head.bias"] + 1e-6
    nudged = mimic(dataclasses.replace(vit_source, tensors=tensors), vit_base.layout)
    assert nudged.base_id != vit_base.base_id


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_templates_in_half_the_bits(dtype, vit_source, vit_base, tmp_path):
    half = mimic(vit_source, vit_base.layout, dtype=dtype)
    save_base(half, tmp_path / "half")
    half = load_base(tmp_path / "half")
    for bank in half.layout.banks:
        assert half.tensors[f"banks.{bank.name}.templates"].dtype == getattr(torch, dtype)
        assert half.templates(bank).dtype == torch.float32
    for module in half.layout.modules:
        source = vit_source.tensors[f"{module}.weight"]
        rounded = source.to(getattr(torch, dtype)).float()
        assert torch.equal(half.state()[f"{module}.weight"], rounded)
        error = float((rounded.double() - source.double()).norm() / source.double().norm())
        assert 0 < half.errors[module]["relative_error"] == pytest.approx(error, rel=1e-6)
    # all but the templates stays as it was
    assert torch.equal(half.state()["blocks.0.mlp.fc1.weight"], vit_source.tensors["blocks.0.mlp.fc1.weight"])


def test_a_task_vector_makes_weights_by_equation_1(vit_base):
    vector = perturbed(vit_base)
    state, places = vit_base.state(vector), vit_base.layout.slices()
    for bank in vit_base.layout.banks:
        for module in bank.modules:
            place, shape = places[module]
            expected = torch.einsum("kn,n...->...", vector[place].reshape(shape), vit_base.templates(bank)) / shape[0]
            torch.testing.assert_close(state[f"{module}.weight"], expected)


@pytest.mark.parametrize("options", [GradientOptions(steps=3), VaeOptions(steps=3)], ids=["gradient", "vae"])
def test_other_solvers_record_what_they_were_given(options, vit_source, vit_base):
    seen = []
    base = mimic(
        vit_source, vit_base.layout, options=options, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen == [(step, 18) for step in range(1, 19)]
    assert base.solver == {"name": type(options).__name__[:-7].lower(), "dtype": "float32", **vars(options)}
    for module, error in base.errors.items():
        mixed, source = base.state()[f"{module}.weight"].double(), vit_source.tensors[f"{module}.weight"].double()
        assert error["relative_error"] == pytest.approx(float((mixed - source).norm() / source.norm()), rel=1e-5)


@pytest.mark.parametrize("sets", [1, 2])
def test_one_template_for_all_layers(sets, vit_source, tmp_path):
    base = mimic(vit_source, plan_layout(vit_source.modules, groups=1, templates=1, sets=sets))
    assert base.layout.coefficients == 12 * sets
    save_base(base, tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    assert torch.equal(loaded.vector, base.vector)
    for name in base.layout.modules:
        factor = base.coefficients(name).mean()
        torch.testing.assert_close(loaded.state()[f"{name}.weight"], factor * base.templates(base.layout.banks[0])[0])


def test_the_source_is_left_alone(vit_source):
    before = vit_source.digest
    mimic(vit_source, plan_layout(vit_source.modules, templates=1))
    assert vit_source.digest == before


def test_more_than_the_memory_is_refused(vit_source, vit_base):
    bank = dataclasses.replace(vit_base.layout.banks[0], shape=(2**24, 2**20))
    with pytest.raises(RecastError, match="GiB"):
        mimic(vit_source, dataclasses.replace(vit_base.layout, banks=(bank,)))


@pytest.mark.parametrize("fails", [False, True])
def test_threads_of_torch_are_given_back(fails, vit_source, tmp_path, monkeypatch):
    seen = []

    def write(self, name, tensor):
        seen.append(torch.get_num_threads())
        if fails:
            raise OSError(28, "No space left on device")
        original(self, name, tensor)

    original = TensorWriter.write
    monkeypatch.setattr(TensorWriter, "write", write)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(OSError, match="No space") if fails else nullcontext():
            mimic(vit_source, plan_layout(vit_source.modules), path=tmp_path / "base")
        assert torch.get_num_threads() == 2
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)
