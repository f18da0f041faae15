"""Linear layers cut in two along a direction of their inputs: two coefficients each, and the file holds the weight."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import recast
from helpers import perturbed, pictures
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from recast_cli.engine.attach import attach, coefficient_parameters, merge
from recast_cli.engine.base import load_base, save_base
from recast_cli.engine.compress.compress import compress
from recast_cli.engine.compress.curvature import template_gradient
from recast_cli.engine.compress.plan import source_bytes
from recast_cli.engine.cut import direction, with_parts
from recast_cli.engine.files import read_metadata
from recast_cli.engine.gradients import cheap_gradients
from recast_cli.engine.layout import Layout, template_key
from recast_cli.engine.mimic import mimic
from recast_cli.engine.options import AdaptOptions, with_rate
from recast_cli.engine.plan import plan_layout
from recast_cli.engine.restore import write_source
from recast_cli.engine.solve import GradientOptions
from recast_cli.engine.switch import Switcher


@pytest.fixture(scope="module")
def layout(vit_source):
    return plan_layout(vit_source.modules)


@pytest.fixture(scope="module")
def base(vit_source, layout):
    return mimic(vit_source, layout)


def by_hand(weight):
    """The direction of a weight (outputs, inputs) with NumPy, in float64: two steps from the longest row."""
    weight = np.asarray(weight, np.float64)
    v = weight[np.argmax(np.linalg.norm(weight, axis=1))]
    for _ in range(2):
        v = weight.T @ (weight @ v)
        v = v / np.linalg.norm(v)
    return v


def by_loops(weight, coefficients):
    """r (W - W v v^T) + p W v v^T, row by row, of a weight (outputs, inputs)."""
    (rest, part), v = coefficients, by_hand(weight)
    along = [float(row @ v) * v for row in np.asarray(weight, np.float64)]
    return np.stack([rest * (row - each) + part * each for row, each in zip(weight, along, strict=True)])


def test_a_direction_is_a_step_towards_the_one_that_is_stretched_most():
    weight = torch.randn(40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = direction(weight)
    np.testing.assert_allclose(v.numpy(), by_hand(weight.numpy()), rtol=1e-12)
    assert float(v.norm()) == pytest.approx(1)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    assert s[0] > (weight @ v).norm() > 0.85 * s[0]
    one = s[0] * torch.outer(u[:, 0], vt[0])  # of a weight of rank one it is the direction itself, and no rest is left
    template, part = with_parts(one[None], "directions")
    torch.testing.assert_close(part, template)
    torch.testing.assert_close((direction(one) @ vt[0]).abs(), torch.ones((), dtype=torch.float64))


def test_a_weight_of_zeros_has_parts_of_zeros():
    assert torch.equal(with_parts(torch.zeros(1, 3, 5), "directions"), torch.zeros(2, 3, 5))


@pytest.mark.parametrize(
    ("budget", "whole"),
    [(48, ["attn.qkv", "attn.proj"]), (59, ["attn.qkv", "attn.proj"]), (47, ["attn.qkv"]), (36, ["attn.qkv"])],
)
def test_roles_are_taken_whole_and_attention_first(budget, whole, vit_source):
    layout = plan_layout(vit_source.modules, budget=budget)
    cut = {bank.modules[0] for bank in layout.banks if (bank.templates, bank.stored, bank.cut) == (2, 1, "directions")}
    rest = {bank.modules[0] for bank in layout.banks if (bank.templates, bank.stored, bank.cut) == (1, 1, None)}
    assert cut == {f"blocks.{block}.mlp.fc2" for block in range(12)}
    assert rest == {f"blocks.{block}.{role}" for block in range(12) for role in whole}
    assert layout.coefficients == layout.degrees_of_freedom == 24 + 12 * len(whole)


def test_nothing_is_cut_where_attention_would_not_fit_beside_it(vit_source):
    layout = plan_layout(vit_source.modules, budget=35)
    assert not layout.cuts
    assert {bank.role for bank in layout.banks} == {"blocks.*.attn.qkv", "blocks.*.mlp.fc2"}


def test_a_role_of_several_shapes_is_one_role():
    """As in Swin, whose stages differ in width: fc2 and attention of all stages, not all roles of the widest."""
    modules = {"layers.0.downsample": (16, 32), "layers.1.downsample": (32, 64)}  # narrow, too, but hold less
    for stage, width in enumerate((8, 16, 32)):
        for block in range(4):
            name = f"layers.{stage}.blocks.{block}"
            modules |= {f"{name}.attn.qkv": (3 * width, width), f"{name}.attn.proj": (width, width)}
            modules |= {f"{name}.mlp.fc1": (4 * width, width), f"{name}.mlp.fc2": (width, 4 * width)}
    layout = plan_layout(modules)
    assert set(layout.modules) == {name for name in modules if name.endswith(("qkv", "proj", "fc2"))}
    assert {bank.modules[0] for bank in layout.banks if bank.cut} == {name for name in modules if name.endswith("fc2")}


def test_networks_without_fused_attention_keep_one_coefficient_a_module(conv_source):
    linear = {f"blocks.{i}.{name}": (8, 8) for i in range(12) for name in ("fc1", "fc2")}
    for modules in (linear, conv_source.modules):
        assert not plan_layout(modules).cuts


def test_layouts_that_are_spelt_out_take_no_directions(vit_source):
    for choice in ({"patterns": ["blocks.*.mlp.fc2"]}, {"groups": 12}, {"layout": "paper-both"}):
        layout = plan_layout(vit_source.modules, **choice)
        assert not layout.cuts
        assert '"directions"' not in json.dumps(layout.to_dict())  # ids of bases from before there were any


def test_a_layout_is_read_back(layout):
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_mimicked_weights_are_the_source_to_the_bit(vit_source, base):
    for bank in base.layout.banks:
        assert torch.equal(base.tensors[template_key(bank)], vit_source.tensors[f"{bank.modules[0]}.weight"][None])
    assert base.vector.tolist() == [1] * 48
    assert all(error == {"relative_error": 0, "cosine": 1} for error in base.errors.values())
    state = base.state()
    assert all(torch.equal(state[name], tensor) for name, tensor in vit_source.tensors.items())


def test_weights_of_a_task_are_the_loops(vit_source, base):
    vector = perturbed(base)
    state = merge(base, vector).state_dict()
    for bank, (place, _) in zip(base.layout.banks, base.layout.slices().values(), strict=True):
        weight = vit_source.tensors[f"{bank.modules[0]}.weight"].numpy()
        expected = by_loops(weight, vector[place].tolist()) if bank.cut else float(vector[place]) * weight
        np.testing.assert_allclose(state[f"{bank.modules[0]}.weight"].numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attached_merged_and_switched_networks_agree(base):
    vector, images = perturbed(base), pictures(2, 32)
    wanted = merge(base, vector)(images)
    assert not torch.allclose(wanted, merge(base)(images), rtol=1e-2)
    torch.testing.assert_close(attach(base, vector)(images), wanted)
    switcher = Switcher(base, "cpu")
    for each in (perturbed(base, seed=1), vector):
        torch.testing.assert_close(switcher.switch(each)(images), merge(base, each)(images), rtol=1e-4, atol=1e-4)
    for name, weight in merge(base).state_dict().items():  # and back, to the bit
        assert torch.equal(switcher.switch(base.vector).state_dict()[name], weight), name


@pytest.mark.parametrize("together", [1, 2**20])
def test_a_switch_writes_what_merging_makes_of_several_sets(together, vit_source, layout, monkeypatch):
    monkeypatch.setattr("recast_cli.engine.switch.TOGETHER", together)
    base = mimic(vit_source, Layout("two sets", 2, layout.banks))
    switcher = Switcher(base, "cpu")
    assert [type(stack).__name__ for stack in switcher.stacks].count("RankOne") == 1
    vector = perturbed(base)
    found, wanted = switcher.switch(vector).state_dict(), merge(base, vector).state_dict()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_formula(base):
    """d/dr = <dL/dW, W - W v v^T>, d/dp = <dL/dW, W v v^T>, with and without the cheap roads."""
    images, places = pictures(2, 32), base.layout.modules
    plain = merge(base)
    weights = [plain.get_parameter(f"{name}.weight").requires_grad_(True) for name in places]
    gradients = torch.autograd.grad(plain(images).square().sum(), weights)
    expected = []
    for bank, weight, gradient in zip(base.layout.banks, map(Tensor.detach, weights), gradients, strict=True):
        v = torch.from_numpy(by_hand(weight.numpy())).float()
        part = torch.outer(weight @ v, v)
        parts = (weight - part, part) if bank.cut else (weight,)
        expected += [float((gradient * each).sum()) for each in parts]
    model = attach(base)
    found = torch.autograd.grad(model(images).square().sum(), coefficient_parameters(model, base))
    torch.testing.assert_close(torch.cat([g.flatten() for g in found]), torch.tensor(expected), rtol=1e-3, atol=1e-2)
    with cheap_gradients(model):
        assert all("forward" in vars(model.get_submodule(name)) for name in places)
        cheap = torch.autograd.grad(model(images).square().sum(), coefficient_parameters(model, base))
    torch.testing.assert_close(cheap, found, rtol=1e-3, atol=1e-2)


def test_the_file_holds_each_weight_once_and_no_direction(vit_source, layout, base, tmp_path):
    written = mimic(vit_source, layout, path=tmp_path / "streamed")
    saved = save_base(base, tmp_path / "saved")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "saved").read_bytes()
    stored = load_file(tmp_path / "saved")
    assert {name for name in stored if name.startswith("banks.")} == set(map(template_key, layout.banks))
    for bank in layout.banks:
        assert stored[template_key(bank)].shape == (1, *bank.shape)
    assert read_metadata(tmp_path / "saved")["format"] == 6
    read = load_base(tmp_path / "saved")
    assert read.layout == layout
    assert read.base_id == saved.base_id == written.base_id == base.base_id
    assert write_source(read, tmp_path / "source")  # the digest of the source, bit by bit


def test_a_compressed_base_cuts_what_it_holds(vit_source, layout):
    base = compress(vit_source, layout, size=source_bytes(vit_source) // 3)
    vector = perturbed(base)
    state, places = base.state(vector), layout.slices()
    for bank in (bank for bank in layout.banks if bank.cut):
        expected = by_loops(base.stored(bank)[0].numpy(), vector[places[bank.modules[0]][0]].tolist())
        np.testing.assert_allclose(state[f"{bank.modules[0]}.weight"].numpy(), expected, rtol=1e-3, atol=1e-4)


def test_curvature_is_of_the_stored_weight(base):
    bank = next(bank for bank in base.layout.banks if bank.cut)
    model = merge(base)
    read = template_gradient(base, model, bank)
    F.cross_entropy(model(pictures(2, 32)), torch.tensor([0, 1])).backward()
    assert torch.equal(read()[0], model.get_parameter(f"{bank.modules[0]}.weight").grad)


def test_rest_and_part_have_the_coefficient_that_a_solver_gives_the_weight(vit_source, layout):
    solved = mimic(vit_source, layout, options=GradientOptions(steps=3))
    for bank in layout.banks:
        assert len(solved.coefficients(bank.modules[0]).unique()) == 1
        source = vit_source.tensors[f"{bank.modules[0]}.weight"]
        error = float((solved.state()[f"{bank.modules[0]}.weight"] - source).norm() / source.norm())
        assert error == pytest.approx(solved.errors[bank.modules[0]]["relative_error"], rel=1e-3)


def test_the_learning_rate_is_that_of_whole_weights(layout):
    assert with_rate(AdaptOptions(), layout).lr == 0.05


def test_from_checkpoint_to_task_and_export(vit_folder, tmp_path, data, weak_probe):
    made = recast("mimic", vit_folder, "-o", "base.safetensors")
    words = " ".join(made.stdout.split())
    assert "blocks.*.mlp.fc2 cut into what they make of one direction of their inputs and the rest" in words
    done = recast("adapt", "--task", "t", "--data", str(data), "--epochs", "2", "--batch-size", "8")
    assert done.exit_code == 0
    moved = load_file("tasks/t/coefficients.safetensors")["coefficients"] - 1
    places = [place for place, shape in load_base("base.safetensors").layout.slices().values() if shape == (1, 2)]
    assert len(places) == 12
    assert (torch.stack([moved[place] for place in places]) != 0).any(0).all()  # rests and parts alike
    assert recast("inspect", "base.safetensors", "--plot", "report.html").exit_code == 0
    rows = re.findall("<tr>(?:(?!</tr>).)*1, cut in two(?:(?!</tr>).)*</tr>", Path("report.html").read_text(), re.S)
    assert len(rows) == 1
    assert "mlp.fc2" in rows[0]
    exported = recast(
        "export", "base.safetensors", "--task", "t", "--format", "safetensors", "-o", "out.safetensors", "--json"
    )
    assert json.loads(exported.stdout)["max_logit_difference"] == 0
