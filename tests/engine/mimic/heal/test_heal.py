"""Healing: shared templates fitted to what their layers do, and trained to give the source's decisions."""

from dataclasses import replace

import pytest
import torch
from helpers import draw_images
from torch import nn

from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.images.unlabelled import read_images
from recast_cli.engine.layout.layout import coefficient_key, template_key
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.compress.fisher import drawn_loss
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.decompose.exact import solve_exact
from recast_cli.engine.mimic.decompose.solution import Solution
from recast_cli.engine.mimic.heal import distil, state
from recast_cli.engine.mimic.heal import fit_bank as bank
from recast_cli.engine.mimic.heal import heal as healing
from recast_cli.engine.mimic.heal.distil import judge_by
from recast_cli.engine.mimic.heal.fit_bank import fit_bank, fit_templates, loss, reduced
from recast_cli.engine.mimic.heal.heal import heal
from recast_cli.engine.mimic.heal.kfac import DAMPING, damped, layer_factors, outer
from recast_cli.engine.mimic.heal.layerwise import heal_layers
from recast_cli.engine.model.attach import merge


def metric(layers, groups, size, generator):
    """Positive definite (layers, groups, size, size), some directions a hundred times as heavy as others."""
    roots = torch.randn(layers, groups, size, size, generator=generator, dtype=torch.float64)
    roots *= torch.logspace(0, 1, size, dtype=torch.float64)
    return roots @ roots.mT + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.fixture
def problem():
    """Five layers in two groups of weights of 3 x 4, and their metrics."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 2, 3, 4, generator=generator, dtype=torch.float64)
    return weights, metric(5, 2, 4, generator), metric(5, 2, 3, generator)


def start_of(weights, templates, sets=2):
    found = solve_exact(weights, templates, sets)
    return Solution(found.templates.double(), found.coefficients.double())


def literal_loss(weights, solution, inputs, outputs):
    """Half of vec(D)^T (A kron B) vec(D), layer by layer and group by group."""
    total = 0.0
    for layer, weight in enumerate(weights):
        off = weight - torch.tensordot(solution.coefficients.mean(1)[layer], solution.templates, dims=1)
        for group in range(weights.shape[1]):
            vector = off[group].flatten()
            total += 0.5 * float(vector @ torch.kron(outputs[layer, group], inputs[layer, group]) @ vector)
    return total


def test_the_loss_is_a_kronecker_product(problem):
    weights, inputs, outputs = problem
    start = start_of(weights, 3)
    found = float(loss(weights, start.templates, start.coefficients.mean(1), inputs, outputs))
    assert found == pytest.approx(literal_loss(weights, start, inputs, outputs))


def test_templates_are_the_solution_of_their_equations(problem, monkeypatch):
    weights, inputs, outputs = problem
    start = start_of(weights, 3)
    mixing = start.coefficients.mean(1)
    monkeypatch.setattr(bank, "STEPS", 200)
    found = fit_templates(start.templates, mixing, outputs @ weights @ inputs, inputs, outputs)
    for group in range(2):  # dense, with templates one below the other
        heavy = [torch.kron(outputs[layer, group], inputs[layer, group]) for layer in range(5)]
        equations = sum(torch.kron(torch.outer(c, c), h) for c, h in zip(mixing, heavy, strict=True))
        target = sum(torch.kron(c, h @ w[group].flatten()) for c, h, w in zip(mixing, heavy, weights, strict=True))
        expected = torch.linalg.solve(equations, target).view(3, 3, 4)
        assert torch.allclose(found[:, group], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("templates", [1, 3, 4])
def test_a_fit_is_better_than_the_nearest_weights_in_its_metric(templates, problem):
    weights, inputs, outputs = problem
    start = start_of(weights, templates)
    found = fit_bank(weights, start, inputs, outputs)
    before, after = (literal_loss(weights, each, inputs, outputs) for each in (start, found))
    assert after < 0.6 * before
    assert found.coefficients.shape == (5, 2, templates)
    assert torch.equal(found.coefficients[:, 0], found.coefficients[:, 1])


def test_where_all_directions_weigh_the_same_nothing_beats_eckart_and_young(problem):
    weights, inputs, outputs = problem
    same = [torch.eye(each.shape[-1], dtype=torch.float64).expand_as(each) for each in (inputs, outputs)]
    start = start_of(weights, 3)
    found = fit_bank(weights, start, *same)
    best = 0.5 * torch.linalg.svdvals(weights.flatten(1))[3:].square().sum()
    assert literal_loss(weights, found, *same) == pytest.approx(float(best), rel=1e-4)


def test_a_basis_of_templates_changes_no_weight(problem):
    start = start_of(problem[0], 3)
    mixing = start.coefficients.mean(1)
    templates, changed = reduced(start.templates, mixing)
    assert torch.allclose(torch.tensordot(changed, templates, dims=1), torch.tensordot(mixing, start.templates, dims=1))
    ones = torch.isclose(changed, torch.ones((), dtype=torch.float64)) & (changed.abs().sum(1, keepdim=True) < 1.0001)
    assert ones.any(1).sum() == 3
    flat = torch.zeros(5, 3, dtype=torch.float64)  # no basis
    assert torch.equal(reduced(start.templates, flat)[1], flat)


@pytest.mark.parametrize("groups", [1, 2])
def test_outer_products_of_gradients(groups):
    convolution = nn.Conv2d(4, 6, 3, groups=groups)
    gradient = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(groups, 6 // groups, 6 // groups)
    for image in gradient:
        for row in range(5):
            for column in range(5):
                for group, values in enumerate(image[:, row, column].split(6 // groups)):
                    expected[group] += torch.outer(values, values)
    assert torch.allclose(outer(convolution, gradient), expected, atol=1e-4)
    rows = gradient[:, :, 0]
    flat = rows.reshape(-1, 5)
    assert torch.allclose(outer(nn.Linear(3, 5), rows), (flat.T @ flat)[None], atol=1e-5)  # three dimensions or four
    assert torch.allclose(
        outer(nn.Linear(3, 5), gradient), (gradient.reshape(-1, 5).T @ gradient.reshape(-1, 5))[None], atol=1e-4
    )


def test_curvature_against_autograd_of_the_weight(vit_source, data):
    """A layer that is called with one token an image: there the Kronecker product of one image is exact."""
    pixels = read_images(data, vit_source.architecture.preprocessing)[:1]
    model = vit_source.network()
    name = "blocks.11.mlp.fc2"
    found = layer_factors(model, [name], pixels, vit_source.architecture)[name]
    layer = model.get_submodule(name)
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.extend([args[0].detach(), output]))
    logits = model(normalise(pixels, vit_source.architecture.preprocessing).requires_grad_(True))
    loss = drawn_loss(logits, True, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, seen[1])
    tokens, rows = seen[0].flatten(0, 1), gradient.flatten(0, 1)
    for factor, expected in ((found.inputs, tokens.T @ tokens / len(tokens)), (found.outputs, rows.T @ rows)):
        assert torch.allclose(factor, damped(expected[None]), rtol=1e-3, atol=1e-9)
    assert torch.allclose(damped(torch.eye(3)[None]), (1 + DAMPING) * torch.eye(3))


def shared(source):
    """All linear layers of the blocks, six templates for twelve layers each."""
    return mimic(source, plan_layout(source.modules, patterns=["blocks.*"], groups=1, templates=6, sets=1))


def divergence(source, base, folder):
    """KL of the source's decisions from the base's, on images of a folder."""
    architecture = base.known_architecture()
    images = normalise(read_images(folder, architecture.preprocessing), architecture.preprocessing)
    with torch.no_grad():
        mine, its = merge(base)(images).softmax(1), source.network()(images).softmax(1)
    return float((its * (its.log() - mine.log())).sum(1).mean())


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("unseen"), count=8, seed=7)


@pytest.mark.slow
def test_a_healed_base_decides_like_its_source_on_images_it_never_saw(vit_source, data, unseen):
    base, pixels = shared(vit_source), read_images(data, vit_source.architecture.preprocessing)
    layers = heal_layers(vit_source, base, vit_source.network(), pixels)
    healed = heal(vit_source, base, pixels)
    far, nearer, nearest = (divergence(vit_source, each, unseen) for each in (base, layers, healed))
    assert nearer < 0.7 * far
    assert nearest < nearer
    assert healed.base_id != base.base_id
    found = healed.solver["healed"]
    assert found["images"] == len(pixels)
    assert found["divergence"]["healed"] <= found["divergence"]["layers"] < found["divergence"]["mimicked"]
    assert 0 < found["best_epoch"] <= found["epochs"]
    classifier = {"head.weight", "head.bias"}
    assert all(torch.equal(healed.tensors[name], base.tensors[name]) for name in classifier)


@pytest.mark.slow
def test_convolutions_and_features_without_a_classifier(conv_source, data, unseen, monkeypatch):
    monkeypatch.setattr(distil, "EPOCHS", 6)
    layout = plan_layout(conv_source.modules, patterns=["layer?.?.conv2"], groups=1, templates=1, sets=1)
    base = mimic(conv_source, layout)
    pixels = read_images(data, conv_source.architecture.preprocessing)
    healed = heal(conv_source, base, pixels)
    assert divergence(conv_source, healed, unseen) < divergence(conv_source, base, unseen)
    architecture = replace(conv_source.architecture, args={**conv_source.architecture.args, "num_classes": 0})
    tensors = {name: tensor for name, tensor in conv_source.tensors.items() if not name.startswith("fc.")}
    headless = replace(conv_source, tensors=tensors, architecture=architecture)
    base = mimic(headless, layout)
    assert not base.known_architecture().classifies
    steps = heal(headless, base, pixels).solver["healed"]["divergence"]
    assert steps["healed"] <= steps["layers"] < steps["mimicked"]


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_base(vit_source, data, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "EPOCHS", 5)
    base, pixels = shared(vit_source), read_images(data, vit_source.architecture.preprocessing)
    whole = heal(vit_source, base, pixels)
    path = tmp_path / "state"

    def kill(done, total, text):
        if "epoch 3" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(vit_source, base, pixels, state_path=path, progress=kill)
    steps = []
    again = heal(vit_source, base, pixels, state_path=path, progress=lambda done, total, text: steps.append(text))
    assert again.base_id == whole.base_id
    assert again.solver == whole.solver
    assert not any("fitting" in text or "epoch 2" in text for text in steps)
    other = heal(vit_source, base, pixels[:-1], state_path=path)  # a state of other images is not gone on from
    assert other.solver["healed"]["images"] == len(pixels) - 1
    path.write_bytes(b"no state")
    assert heal(vit_source, base, pixels, state_path=path).base_id == whole.base_id


def test_without_a_better_epoch_training_goes_back_and_slows_down_until_it_ends():
    value = {"a": torch.zeros(1)}
    now = state.HealingState(value, value, [1.0])
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    now = state.next_state(now, {"a": torch.ones(1)}, 0.5, optimizer)
    assert (now.best_epoch, now.rate, float(now.best["a"])) == (1, state.LR, 1.0)
    now = state.next_state(now, {"a": torch.full((1,), 2.0)}, 0.6, optimizer)
    assert (now.best_epoch, now.rate, float(now.values["a"])) == (1, state.LR, 2.0)
    now = state.next_state(now, {"a": torch.full((1,), 3.0)}, 0.5, optimizer)
    assert (now.rate, float(now.values["a"]), now.optimizer) == (pytest.approx(state.LR / 3), 1.0, None)
    now = state.next_state(now, {"a": torch.full((1,), 3.0)}, float("nan"), optimizer)
    assert now.rate == pytest.approx(state.LR / 9)
    assert now.best_epoch == 1


def test_what_cannot_be_healed(vit_source, data):
    pixels = read_images(data, vit_source.architecture.preprocessing)
    with pytest.raises(RecastError, match="a template of its own"):
        heal(vit_source, mimic(vit_source, plan_layout(vit_source.modules)), pixels)
    with pytest.raises(RecastError, match="needs 16 images"):
        heal(vit_source, shared(vit_source), pixels[:15])
    with pytest.raises(RecastError, match="no known architecture"):
        heal(replace(vit_source, architecture=None), shared(vit_source), pixels)


def test_only_what_is_shared_and_vectors_move(vit_source, data, monkeypatch):
    monkeypatch.setattr(distil, "EPOCHS", 2)
    layout = plan_layout(vit_source.modules, patterns=["blocks.*.mlp.fc1"], groups=6, templates=1)
    base, pixels = mimic(vit_source, layout), read_images(data, vit_source.architecture.preprocessing)
    before = {name: tensor.clone() for name, tensor in base.tensors.items()}
    healed = heal(vit_source, base, pixels)
    assert all(torch.equal(base.tensors[name], tensor) for name, tensor in before.items())
    ours = {*map(template_key, layout.banks), *map(coefficient_key, layout.modules)}
    for name, tensor in base.tensors.items():
        same = torch.equal(tensor, healed.tensors[name])
        assert same == (name not in ours and (tensor.ndim != 1 or name.startswith("head."))), name
    judge = judge_by(vit_source.network(), pixels[::8], base)
    assert judge(merge(healed)) == pytest.approx(healed.solver["healed"]["divergence"]["healed"], rel=1e-3)


@pytest.mark.slow
def test_nothing_is_fitted_to_images_that_judge(vit_source, data, monkeypatch):
    seen = {}

    def watch(name, place):
        own = getattr(healing, name)

        def wrapped(*arguments, **options):
            seen[name] = {image.numpy().tobytes() for image in arguments[place]}
            return own(*arguments, **options)

        monkeypatch.setattr(healing, name, wrapped)

    monkeypatch.setattr(distil, "EPOCHS", 1)
    for name, place in (("judge_by", 1), ("heal_layers", 3), ("distil", 2)):
        watch(name, place)
    heal(vit_source, shared(vit_source), read_images(data, vit_source.architecture.preprocessing))
    assert len(seen["judge_by"]) == 5
    assert len(seen["distil"]) == 31
    assert seen["heal_layers"] == seen["distil"]
    assert not seen["judge_by"] & seen["distil"]
