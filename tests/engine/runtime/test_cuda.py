"""Adapting on a GPU under bfloat16 autocast; skipped where there is none."""

import pytest
import torch
from helpers import perturbed, random_images
from torch import distributed, nn

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.images.unlabelled import read_images
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.evaluate import evaluate
from recast_cli.engine.mimic.compress.fisher import curvatures
from recast_cli.engine.mimic.compress.matrices import matrices
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.heal.heal import heal
from recast_cli.engine.model.attach import attach, coefficient_parameters, merge
from recast_cli.engine.model.coefficient_gradients import cheap_gradients
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.runtime.accumulate import Accumulator
from recast_cli.engine.runtime.device import choose_device, ready
from recast_cli.engine.runtime.precision import precision
from recast_cli.engine.task.options import AdaptOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine")


def test_cuda_is_the_default_and_runs_in_bfloat16():
    assert choose_device().type == "cuda"
    with precision(torch.device("cuda")):
        assert torch.mm(torch.ones(8, 8, device="cuda"), torch.ones(8, 8, device="cuda")).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_adapting_moves_the_coefficients(kind, request, data, every_epoch_counts, tmp_path):
    base = request.getfixturevalue(f"{kind}_base")
    task = adapt(base, data, "t", tmp_path / "tasks" / "t", AdaptOptions(epochs=2), device="cuda")
    assert 1e-3 < float((task.vector - base.vector).abs().max()) < 1
    assert task.vector.dtype == task.weight.dtype == torch.float32
    assert task.record["device"].startswith("cuda")
    measured = evaluate(base, task, data, device="cuda")
    assert measured.top1 == pytest.approx(task.record["metrics"]["test_top1"])


def test_small_steps_are_not_rounded_away(vit_base):
    model = attach(vit_base).cuda()
    coefficients = coefficient_parameters(model, vit_base)
    images = random_images(4).cuda()
    with precision(torch.device("cuda")):
        model(images).float().square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in coefficients)
    with torch.no_grad():
        for parameter in coefficients:
            parameter.sub_(1e-4 * parameter.grad.sign())
    for parameter, name in zip(coefficients, vit_base.layout.modules, strict=True):
        moved = parameter.detach().cpu() - vit_base.coefficients(name)
        assert 0.9e-4 < float(moved.abs().max()) < 1.1e-4


def test_merged_networks_agree_with_the_cpu(vit_base, data, every_epoch_counts, tmp_path):
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", AdaptOptions(epochs=3), device="cuda")
    assert not torch.equal(task.vector, vit_base.vector)
    model, images = merge(vit_base, task.vector), random_images(8)
    with torch.no_grad():
        expected = model(images)
        found = model.cuda()(images.cuda()).cpu()
        with precision(torch.device("cuda")):
            rough = model(images.cuda()).float().cpu()
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(rough, expected, atol=0.1 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_cheap_gradients_are_those_of_autograd(kind, request):
    base = request.getfixturevalue(f"{kind}_base")
    model = ready(attach(base), torch.device("cuda"))
    parameters, images = coefficient_parameters(model, base), random_images(8).cuda()

    def gradients():
        with precision(torch.device("cuda")):
            loss = model(images).float().square().mean()
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])

    wanted = gradients()
    with cheap_gradients(model):
        found = gradients()
    assert float((found - wanted).norm()) < 0.05 * float(wanted.norm())


@pytest.mark.parametrize("choose", [0, 20, 96])
def test_no_step_makes_the_cpu_wait(choose, vit_base, data, tmp_path, monkeypatch):
    """Within an epoch every synchronising call is an error; the mean loss at its end is the one that is allowed."""
    seen = []
    own = Accumulator.gradients

    def strict(self, *inputs):
        # the first steps load libraries, and record a graph of a whole batch and one of the last batch
        torch.cuda.set_sync_debug_mode("error" if len(seen) > 8 else "default")
        seen.append(self)
        try:
            return own(self, *inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Accumulator, "gradients", strict)
    options = AdaptOptions(epochs=4, batch_size=8, patience=0, choose=choose)
    adapt(vit_base, data, "t", tmp_path / "tasks" / "t", options, device="cuda")
    assert len(seen) > 10
    assert seen[0].work.records
    assert all(seen[0].work.graphs.values())


def test_a_graph_does_what_its_work_does():
    parameters = [nn.Parameter(torch.randn(3, 4, device="cuda")) for _ in range(2)]
    rows = torch.randn(40, 4, device="cuda")

    def loss(rows):
        return sum((rows @ parameter.T).exp().sum() for parameter in parameters)

    def plain(rows):
        value = loss(rows)
        return [value.detach(), *torch.autograd.grad(value, parameters)]

    accumulator = Accumulator(loss, parameters, 8)
    for part in (*rows[:32].split(8), rows):  # plain, recorded, replayed twice; then in parts
        value, gradients = accumulator.gradients(part)
        for found, expected in zip([value, *gradients], plain(part), strict=True):
            torch.testing.assert_close(found, expected)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(0.9)
    assert all(accumulator.work.graphs.values())


def test_what_cannot_be_recorded_is_done_all_the_same():
    weight = nn.Parameter(torch.ones((), device="cuda"))
    accumulator = Accumulator(lambda rows: weight * rows.sum().item(), [weight], 8)  # item() waits
    for number in range(1, 4):
        value, (gradient,) = accumulator.gradients(torch.full((8,), float(number), device="cuda"))
        assert float(value) == float(gradient) == 8 * number
    assert not accumulator.work.records


@pytest.mark.parametrize("choose", [0, 20, 96])
@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_graphs_train_what_plain_steps_train(choose, kind, request, data, every_epoch_counts, tmp_path, monkeypatch):
    base = request.getfixturevalue(f"{kind}_base")
    options = AdaptOptions(epochs=3, batch_size=8, patience=0, precision="float32", choose=choose)
    recorded = adapt(base, data, "a", tmp_path / "tasks" / "a", options, device="cuda")
    monkeypatch.setattr("recast_cli.engine.runtime.accumulate.Replayed", lambda work: work)
    plain = adapt(base, data, "b", tmp_path / "tasks" / "b", options, device="cuda")
    moved = float((plain.vector if choose else plain.vector - base.vector).abs().max())
    assert moved > (1e-4 if choose else 1e-2)
    assert float((recorded.vector - plain.vector).abs().max()) < 0.05 * moved


def test_nccl_carries_what_processes_tell_each_other(vit_base, data, every_epoch_counts, tmp_path):
    """One process, as there is one card: every collective runs, and changes nothing."""
    options = AdaptOptions(epochs=2, batch_size=8, precision="float32")
    alone = adapt(vit_base, data, "a", tmp_path / "tasks" / "a", options, device="cuda")
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        joined = adapt(vit_base, data, "b", tmp_path / "tasks" / "b", options, device="cuda")
    finally:
        distributed.destroy_process_group()
    assert not torch.equal(alone.vector, vit_base.vector)
    torch.testing.assert_close(joined.vector, alone.vector, atol=1e-3, rtol=0)


def test_images_that_do_not_fit_the_card_come_batch_by_batch(vit_base, data, every_epoch_counts, tmp_path, monkeypatch):
    options = AdaptOptions(epochs=3, batch_size=8, precision="float32")
    resident = adapt(vit_base, data, "a", tmp_path / "tasks" / "a", options, device="cuda")
    monkeypatch.setattr("recast_cli.engine.adapt.loop.resident", lambda pixels, device: pixels)
    sent = adapt(vit_base, data, "b", tmp_path / "tasks" / "b", options, device="cuda")
    torch.testing.assert_close(sent.vector, resident.vector, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_a_compiled_network_learns_the_same(kind, request, data, tmp_path):
    base = request.getfixturevalue(f"{kind}_base")
    options = AdaptOptions(recipe="paper", epochs=2, batch_size=8)  # a random head: there is something to learn
    plain, compiled = (
        adapt(base, data, name, tmp_path / "tasks" / name, options, device="cuda", compiled=name == "compiled")
        for name in ("plain", "compiled")
    )
    losses = [[epoch["loss"] for epoch in task.record["history"][1:]] for task in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_automatic_batch_is_recorded(vit_base, data, tmp_path):
    options = AdaptOptions(epochs=1, batch_size="auto")
    task = adapt(vit_base, data, "t", tmp_path / "tasks" / "t", options, device="cuda")
    assert task.record["options"]["batch_size"] == "auto"
    assert task.record["batch_size"] >= 1


@pytest.mark.parametrize("templates", [1, 2, 6])
def test_switching_writes_what_merging_gives(templates, vit_source):
    """In full precision: what `ready` asks of products of activations is not for weights."""
    patterns = ["blocks.*.attn.qkv"]
    base = mimic(vit_source, plan_layout(vit_source.modules, patterns=patterns, groups=12 // templates, sets=1))
    assert base.layout.templates == templates
    switcher = Switcher(base, "cuda")
    vector = perturbed(base)
    switcher.switch(vector)
    switched, merged = switcher.switch(vector).state_dict(), merge(base, vector).state_dict()
    for name, weight in merged.items():
        torch.testing.assert_close(switched[name].cpu(), weight, atol=1e-7, rtol=1e-6)


def test_healing_brings_decisions_nearer(vit_source, data):
    layout = plan_layout(vit_source.modules, patterns=["blocks.*"], groups=1, templates=6, sets=1)
    pixels = read_images(data, vit_source.architecture.preprocessing)
    healed = heal(vit_source, mimic(vit_source, layout), pixels, device="cuda")
    steps = healed.solver["healed"]["divergence"]
    assert steps["healed"] <= steps["layers"] < 0.5 * steps["mimicked"]
    assert all(tensor.device.type == "cpu" for tensor in healed.tensors.values())


def test_calibrating_sees_what_the_cpu_sees(vit_source, data):
    base = mimic(vit_source, plan_layout(vit_source.modules))
    pixels = read_images(data, vit_source.architecture.preprocessing)[:4]
    shapes = {name: matrices(name, base.tensors[name].shape) for name in ("head.weight", "patch_embed.proj.weight")}
    there, here = (curvatures(base, pixels, shapes, device) for device in ("cuda", "cpu"))
    for name, expected in here.items():
        assert there[name].columns.device.type == "cpu"
        assert torch.allclose(there[name].rows, expected.rows, rtol=0.1, atol=1e-2 * float(expected.rows.max()))
