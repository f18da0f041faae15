"""Kernels cut in two, their mean over the window and the rest: two coefficients each, and the file holds the kernel."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixtures.cli_helpers import recast
from helpers import network, perturbed, random_images
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.base.mixture import with_means
from recast_cli.engine.export.restore import write_source
from recast_cli.engine.layout.layout import Layout, template_key
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.diagnose import diagnose, diagnose_roles, template_entropy
from recast_cli.engine.mimic.compress.compress import compress
from recast_cli.engine.mimic.compress.fisher import gradient_of
from recast_cli.engine.mimic.compress.plan import source_bytes
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions
from recast_cli.engine.model.attach import attach, coefficient_parameters, merge
from recast_cli.engine.model.coefficient_gradients import cheap_gradients
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.source.open import open_source
from recast_cli.engine.source.source import from_model
from recast_cli.engine.storage.header import read_metadata
from recast_cli.engine.task.options import AdaptOptions, settled

NAME, ARGS = "mobilenetv2_035", {"num_classes": 3}


@pytest.fixture(scope="module")
def source():
    return from_model(NAME, network(NAME, ARGS), ARGS)


@pytest.fixture(scope="module")
def layout(source):
    return plan_layout(source.modules)


@pytest.fixture(scope="module")
def base(source, layout):
    return mimic(source, layout)


def windowed(model):
    """Names of all convolutions whose filters have more than one place."""
    return [n for n, each in model.named_modules() if isinstance(each, torch.nn.Conv2d) and each.kernel_size != (1, 1)]


def by_loops(kernel, coefficients):
    """r (W - mean(W)) + m mean(W), entry by entry, of a kernel (out, in, height, width)."""
    rest, blur = coefficients
    found = np.empty_like(kernel)
    for out, inside in np.ndindex(*kernel.shape[:2]):
        filters = kernel[out, inside]
        mean = sum(float(value) for value in filters.ravel()) / filters.size
        for place in np.ndindex(*filters.shape):
            found[(out, inside, *place)] = rest * (filters[place] - mean) + blur * mean
    return found


@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 1, 3, 3), (6, 1, 1, 5), (2, 1, 2, 3, 4)])
def test_means_are_over_the_window_alone(shape):
    templates = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = with_means(templates)
    assert found.shape == (4, *shape)
    assert torch.equal(found[:2], templates)
    for template, mean in zip(templates.flatten(0, 2), found[2:].flatten(0, 2), strict=True):
        expected = sum(template.flatten().tolist()) / template.numel()
        np.testing.assert_allclose(mean.numpy(), np.full(mean.shape, expected), rtol=1e-12)


def test_all_kernels_and_nothing_else_are_picked(source, layout):
    wanted = windowed(source.network())
    assert len(wanted) == 18
    assert set(layout.modules) == set(wanted)
    assert layout.coefficients == layout.degrees_of_freedom == 2 * len(wanted)
    assert all((bank.templates, bank.stored, bank.means) == (2, 1, True) for bank in layout.banks)
    assert layout.template_parameters == layout.source_parameters == sum(math.prod(b.shape) for b in layout.banks)


KERNELS = {"stem": (8, 3, 3, 3)} | {
    f"blocks.{i}.{name}": shape for i in range(30) for name, shape in {"dw": (8, 1, 3, 3), "pw": (8, 8, 1, 1)}.items()
}


@pytest.mark.parametrize(("budget", "count"), [(49, 24), (48, 24), (5, 2), (3, 1), (2, 1)])
def test_the_first_within_the_budget(budget, count):
    layout = plan_layout(KERNELS, budget=budget)
    assert set(layout.modules) == {"stem"} | {f"blocks.{i}.dw" for i in range(count - 1)}
    assert layout.coefficients == 2 * count


@pytest.mark.parametrize(
    ("modules", "budget"),
    [
        (KERNELS, 1),  # no room for two
        (KERNELS | {"neck": (8, 8)}, 49),  # a linear module
        (
            {
                name: shape
                for name, shape in KERNELS.items()
                if "pw" in name or ("dw" in name and int(name.split(".")[1]) < 7)
            },
            49,
        ),
        ({name: (8, 8, *shape[2:]) for name, shape in KERNELS.items()}, 49),  # nothing is depthwise
        ({name: (8, 1, 1, 1) for name in KERNELS}, 49),  # nothing to take a mean of
    ],
)
def test_other_networks_keep_one_coefficient_a_module(modules, budget):
    assert not any(bank.means for bank in plan_layout(modules, budget=budget).banks)


def test_layouts_that_are_spelt_out_take_no_means(source):
    for choice in ({"patterns": ["blocks.*.conv_dw"]}, {"templates": 1}, {"sets": 2}):
        layout = plan_layout(source.modules, **choice)
        assert not any(bank.means for bank in layout.banks)
        assert '"means"' not in json.dumps(layout.to_dict())  # ids of bases from before there were any


def test_a_layout_is_read_back(layout):
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_mimicked_weights_are_the_source_to_the_bit(source, base):
    for bank in base.layout.banks:
        assert torch.equal(base.tensors[template_key(bank)], source.tensors[f"{bank.modules[0]}.weight"][None])
    assert base.vector.tolist() == [1, 1] * len(base.layout.modules)
    assert all(error == {"relative_error": 0, "cosine": 1} for error in base.errors.values())
    state = base.state()
    assert all(torch.equal(state[name], tensor) for name, tensor in source.tensors.items())


def test_weights_of_a_task_are_the_loops(source, base):
    vector = perturbed(base)
    state = merge(base, vector).state_dict()
    for name, pair in zip(base.layout.modules, vector.view(-1, 2).tolist(), strict=True):
        kernel = source.tensors[f"{name}.weight"].double().numpy()
        np.testing.assert_allclose(state[f"{name}.weight"].numpy(), by_loops(kernel, pair), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_attached_merged_and_switched_networks_agree(base):
    vector, images = perturbed(base), random_images(2, 96)
    wanted = merge(base, vector)(images)
    assert not torch.allclose(wanted, merge(base)(images), rtol=1e-2)
    torch.testing.assert_close(attach(base, vector)(images), wanted)
    switcher = Switcher(base, "cpu")
    for each in (perturbed(base, seed=1), vector):
        torch.testing.assert_close(switcher.switch(each)(images), merge(base, each)(images))
    for name, weight in merge(base).state_dict().items():  # and back, to the bit
        assert torch.equal(switcher.switch(base.vector).state_dict()[name], weight), name


def test_gradients_are_those_of_the_formula(base):
    """d/dr = <dL/dW, W - mean(W)>, d/dm = <dL/dW, mean(W)>, with and without the cheap roads."""
    images, places = random_images(2, 64), base.layout.modules
    plain = merge(base)
    weights = [plain.get_parameter(f"{name}.weight").requires_grad_(True) for name in places]
    expected = []
    for weight, gradient in zip(weights, torch.autograd.grad(plain(images).square().sum(), weights), strict=True):
        weight = weight.detach()
        mean = weight.mean((2, 3), keepdim=True).expand_as(weight)
        expected += [float((gradient * (weight - mean)).sum()), float((gradient * mean).sum())]
    model = attach(base)
    found = torch.autograd.grad(model(images).square().sum(), coefficient_parameters(model, base))
    torch.testing.assert_close(torch.cat([g.flatten() for g in found]), torch.tensor(expected), rtol=1e-3, atol=1e-3)
    with cheap_gradients(model):
        assert not any(
            "forward" in vars(model.get_submodule(name)) for name in places
        )  # their roads know no cut kernels
        cheap = torch.autograd.grad(model(images).square().sum(), coefficient_parameters(model, base))
    torch.testing.assert_close(cheap, found, rtol=1e-3, atol=1e-3)


def test_file_holds_each_kernel_once(source, layout, base, tmp_path):
    written = mimic(source, layout, path=tmp_path / "streamed")
    saved = save_base(base, tmp_path / "saved")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "saved").read_bytes()
    for bank in layout.banks:
        assert load_file(tmp_path / "saved")[template_key(bank)].shape == (1, *bank.shape)
    assert read_metadata(tmp_path / "saved")["format"] == 3
    read = load_base(tmp_path / "saved")
    assert read.layout == layout
    assert read.base_id == saved.base_id == written.base_id == base.base_id
    assert torch.equal(read.templates(layout.banks[0]), with_means(read.stored(layout.banks[0])))
    assert write_source(read, tmp_path / "source")  # the digest of the source, bit by bit


@pytest.mark.slow
def test_a_compressed_base_cuts_what_it_holds(source, layout):
    base = compress(source, layout, size=source_bytes(source) // 3)
    vector = perturbed(base)
    state = base.state(vector)
    for bank, pair in zip(layout.banks, vector.view(-1, 2).tolist(), strict=True):
        expected = by_loops(base.stored(bank)[0].numpy(), pair)
        np.testing.assert_allclose(state[f"{bank.modules[0]}.weight"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert base.codes.keys() >= {template_key(bank) for bank in layout.banks}


def test_curvature_is_of_the_stored_kernel(base):
    bank = base.layout.banks[0]
    model, images = merge(base), random_images(2, 64)
    read = gradient_of(base, model, template_key(bank))
    F.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    assert torch.equal(read()[0], model.get_parameter(f"{bank.modules[0]}.weight").grad)


@pytest.mark.slow
def test_calibrated_and_solved_by_descent(source, layout, data):
    small = compress(source, layout, size=source_bytes(source) // 4, calibrate=data)
    assert small.compression["calibrated"] == {"images": 36, "pictures": 36}
    assert all(0 < small.errors[module]["relative_error"] < 0.2 for module in layout.modules)
    solved = mimic(source, layout, options=GradientOptions(steps=3))
    assert torch.equal(*solved.vector.view(-1, 2).unbind(1))
    for bank in layout.banks:
        error = (solved.state()[f"{bank.modules[0]}.weight"] - source.tensors[f"{bank.modules[0]}.weight"]).norm()
        expected = solved.errors[bank.modules[0]]["relative_error"]
        assert math.isclose(float(error / source.tensors[f"{bank.modules[0]}.weight"].norm()), expected, rel_tol=1e-4)


def test_diagnoses_are_of_what_the_file_holds(base):
    for found, bank in zip(diagnose(base), base.layout.banks, strict=True):
        assert found.frobenius is None  # one template a bank
        assert found.entropy == template_entropy(base.stored(bank))
    assert sum(role.templates for role in diagnose_roles(base)) == len(base.layout.banks)


@pytest.mark.parametrize(
    ("options", "kernels", "scales"), [({}, 0.006, 0.05), ({"recipe": "paper"}, 2e-3, 2e-3), ({"lr": 0.3}, 0.3, 0.3)]
)
def test_learning_rate(options, kernels, scales, source, layout):
    assert settled(AdaptOptions(**options), layout, 32).lr == kernels
    assert settled(AdaptOptions(**options), plan_layout(source.modules, sets=1), 32).lr == scales


@pytest.mark.slow
def test_from_checkpoint_to_task_and_export(tmp_path, data, weak_probe):
    save_file(network(NAME, ARGS).state_dict(), "net.safetensors")
    made = recast("mimic", "net.safetensors", "--architecture", NAME, "-o", "base.safetensors", "--json")
    assert json.loads(made.stdout)["coefficients"] == 2 * len(windowed(network(NAME, ARGS)))
    done = recast(
        "adapt", "--task", "t", "--data", str(data), "--image-size", "64", "--epochs", "2", "--batch-size", "8"
    )
    assert done.exit_code == 0
    assert yaml.safe_load(Path("tasks/t/task.yaml").read_text())["options"]["lr"] == 0.006
    moved = load_file("tasks/t/coefficients.safetensors")["coefficients"].view(-1, 2) - 1
    assert (moved != 0).any(0).all()  # means and rests alike
    shown = recast("inspect", "base.safetensors", "--plot", "report.html", "--json")
    assert shown.exit_code == 0
    (row,) = re.findall(
        "<tr>(?:(?!</tr>).)*conv_stem(?:(?!</tr>).)*16 × 3 × 3 × 3.*?</tr>", Path("report.html").read_text(), re.S
    )
    assert ">432<" in row  # 16 * 3 * 3 * 3
    assert "1, cut in two" in row
    exported = recast(
        "export", "base.safetensors", "--task", "t", "--format", "safetensors", "-o", "out.safetensors", "--json"
    )
    assert json.loads(exported.stdout)["max_logit_difference"] == 0
    assert open_source("net.safetensors", architecture=NAME).modules.keys() >= set(
        load_base("base.safetensors").layout.modules
    )
