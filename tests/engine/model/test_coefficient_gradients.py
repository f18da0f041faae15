"""Cheap coefficient gradients against plain autograd through the parametrization, in float64."""

import importlib

import pytest
import timm
import torch
from helpers import random_images
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import Mixture, Templates, attach, coefficient_parameters
from recast_cli.engine.model.coefficient_gradients import cheap_gradients, choose_strategy
from recast_cli.engine.model.mixed_products import SMALL, Products, Scaled, inner

module = importlib.import_module("recast_cli.engine.model.coefficient_gradients")

MODULES = {
    "linear, wide": (lambda: nn.Linear(6, 10), (3, 4, 6)),
    "linear, narrow, no bias": (lambda: nn.Linear(9, 4, bias=False), (5, 9)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d, strided, grouped": (lambda: nn.Conv2d(6, 8, 3, 2, 1, groups=2), (2, 6, 7, 7)),
    "conv2d, dilated, no bias": (lambda: nn.Conv2d(4, 4, 3, 1, 2, 2, bias=False), (2, 4, 8, 8)),
    "conv2d, depthwise": (lambda: nn.Conv2d(5, 5, 3, padding=1, groups=5), (2, 5, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
}


def mixed(make, templates, sets, dtype=torch.float64):
    """A module whose weight is a mixture of random templates."""
    torch.manual_seed(0)
    made = make().to(dtype).requires_grad_(False)
    bank = torch.randn(templates, *made.weight.shape, dtype=dtype)
    made.weight = nn.Parameter(torch.randn(sets, templates, dtype=dtype))
    parametrize.register_parametrization(made, "weight", Mixture(Templates(bank)), unsafe=True)
    return made


def run(made, x, downstream):
    """The output, and the gradients of its product with `downstream` by coefficients and, where wanted, by x."""
    y = made(x)
    wanted = [made.parametrizations.weight.original, *([x] if x.requires_grad else [])]
    return [y, *torch.autograd.grad((y * downstream).sum(), wanted)]


ROADS = [
    (name, templates, sets, strategy)
    for name in MODULES
    for templates, sets in ((1, 1), (1, 2), (2, 2), (3, 1))
    for strategy in ("input", "output")
    if not (templates == 1 and strategy == "output" and "no bias" in name)
]


@pytest.mark.parametrize("input_gradient", [True, False])
@pytest.mark.parametrize(("name", "templates", "sets", "strategy"), ROADS)
def test_every_road_gives_the_gradients_of_autograd(name, templates, sets, strategy, input_gradient, monkeypatch):
    make, shape = MODULES[name]
    made = mixed(make, templates, sets)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=input_gradient)
    downstream = torch.randn_like(made(x))
    wanted = run(made, x, downstream)
    monkeypatch.setattr(module, "choose_strategy", lambda *arguments, **options: strategy)
    calls = []
    for kind in (Scaled, Products):
        monkeypatch.setattr(
            kind, "apply", lambda *inputs, kind=kind, own=kind.apply: (calls.append(kind), own(*inputs))[1]
        )
    with cheap_gradients(made):
        found = run(made, x, downstream)
    assert calls == [Scaled if templates == 1 else Products]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        ours.detach().add_(1)  # processes add them up in place, which an expanded tensor does not allow


def test_a_coefficient_of_zero_still_has_its_gradient():
    made = mixed(lambda: nn.Linear(5, 7), 1, 1)
    with torch.no_grad():
        made.parametrizations.weight.original.zero_()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    downstream = torch.randn(4, 7, dtype=torch.float64)
    wanted = run(made, x, downstream)
    with cheap_gradients(made):
        found = run(made, x, downstream)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-10, atol=1e-10)
    assert (found[0] - wanted[0]).abs().max() <= 100 * SMALL
    assert found[2].abs().max() <= 100 * SMALL


@pytest.mark.parametrize("templates", [1, 2])
@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 32, bias=False), lambda: nn.Conv2d(64, 16, 3, bias=False)])
def test_bfloat16_keeps_a_coefficient_near_one(make, templates):
    """A step of 1/1024 from 1 is lost where a coefficient is rounded to bfloat16; the outputs must show it."""
    made = mixed(make, templates, 1, torch.float32)
    shape = (64, 64) if isinstance(made, nn.Linear) else (8, 64, 6, 6)
    x, outputs = torch.randn(shape, requires_grad=True), []
    for value in (1.0, 1.0 + 2**-10):
        made.parametrizations.weight.original.data.fill_(value)
        with cheap_gradients(made), torch.autocast("cpu", torch.bfloat16):
            outputs.append(made(x).detach())
        assert outputs[-1].dtype == torch.bfloat16
    first, second = (output.double() for output in outputs)
    ratio = float((first * second).sum() / (first * first).sum())
    assert ratio == pytest.approx(1 + 2**-10, abs=3e-4)


@pytest.mark.parametrize("templates", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(64, 32),
        lambda: nn.Linear(32, 64),
        lambda: nn.Linear(96, 16),
        lambda: nn.Conv2d(32, 16, 3),
        lambda: nn.Conv2d(32, 4, 3),
    ],
)
def test_gradients_under_bfloat16_are_those_of_autograd(make, templates):
    made = mixed(make, templates, 2, torch.float32)
    shape = (512, made.in_features) if isinstance(made, nn.Linear) else (8, 32, 10, 10)
    x = torch.randn(shape, requires_grad=True)
    downstream = torch.randn_like(made(x)) + 0.2
    wanted = run(made, x, downstream)
    with cheap_gradients(made), torch.autocast("cpu", torch.bfloat16):
        found = run(made, x, downstream)
    assert found[1].dtype == found[2].dtype == torch.float32
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("channel", [-1, 1])
@pytest.mark.parametrize("shape", [(4096, 3), (1, 50, 192), (32, 50, 192), (8, 16, 12, 12), (5000,)])
def test_inner_products_of_bfloat16_are_summed_in_float32(shape, channel):
    """Long sums of equal sign, where bfloat16 would stop at 256, and of both signs, where terms cancel."""
    if len(shape) == 1 and channel == 1:
        return
    torch.manual_seed(0)
    first = torch.randn(shape).bfloat16()
    for second in (first, torch.randn(shape).bfloat16(), (first.float() + torch.randn(shape)).bfloat16()):
        wanted = (first.double() * second.double()).sum()
        found = inner(first, second, channel)
        assert found.dtype == torch.float32
        # what rounding the numbers of A and B has changed already: 1/512 of each product, in random directions
        scale = (first.double() * second.double()).square().sum().sqrt() / 512 + wanted.abs() / 4096
        assert (found - wanted).abs() < scale


@pytest.mark.parametrize("kind", ["vit", "conv"])
@pytest.mark.parametrize("templates", [None, 1])
def test_a_whole_network_has_the_gradients_of_autograd(kind, templates, vit_source, conv_source):
    source = vit_source if kind == "vit" else conv_source
    patterns = ["blocks.*"] if kind == "vit" else ["layer*"]
    layout = plan_layout(source.modules, patterns=patterns, templates=templates)
    base = mimic(source, layout)
    model = attach(base).double()
    parameters = coefficient_parameters(model, base)
    images, target = random_images(3).double(), torch.tensor([0, 1, 2])
    wanted = torch.autograd.grad(F.cross_entropy(model(images), target), parameters)
    with cheap_gradients(model):
        assert any("forward" in vars(each) for each in model.modules())
        found = torch.autograd.grad(F.cross_entropy(model(images), target), parameters)
    assert not any("forward" in vars(each) for each in model.modules())
    for ours, theirs in zip(found, wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_a_module_that_does_more_with_its_weight_is_left_alone():
    """ScaledStdConv2d standardises its weight first, Conv2dSame pads by the input: their forwards are not torch's."""
    from timm.layers import Conv2dSame, ScaledStdConv2d

    for make in (lambda: ScaledStdConv2d(3, 4, 3), lambda: Conv2dSame(3, 4, 3, 2)):
        made = mixed(make, 1, 1, torch.float32)
        with cheap_gradients(made):
            assert "forward" not in vars(made)


@pytest.mark.parametrize("templates", [1, 3])
def test_gradients_of_gradients_are_refused(templates, monkeypatch):
    made = mixed(lambda: nn.Linear(5, 7), templates, 1)
    monkeypatch.setattr(module, "choose_strategy", lambda *arguments, **options: "input")
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    with cheap_gradients(made), pytest.raises(RuntimeError, match="gradients of gradients"):
        torch.autograd.grad(made(x).sum(), x, create_graph=True)


def test_validation_takes_the_module_s_own_forward():
    made = mixed(lambda: nn.Linear(5, 7), 1, 1)
    x = torch.randn(4, 5, dtype=torch.float64)
    with cheap_gradients(made), torch.no_grad():
        assert torch.equal(made(x), F.linear(x, made.weight, made.bias))


def test_nothing_is_kept_below_the_first_adapted_module(vit_source):
    """Only the last block is adapted: tensors are kept for it and what is above, no more than if it were alone."""
    layout = plan_layout(vit_source.modules, patterns=["blocks.11.mlp.fc?"], groups=1)
    model = attach(mimic(vit_source, layout))
    kept, reached = [], []
    model.blocks[11].mlp.fc1.register_forward_pre_hook(lambda *_: reached.append(len(kept)))
    with (
        cheap_gradients(model),
        torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (kept.append(tensor), tensor)[1], lambda tensor: tensor
        ),
    ):
        model(random_images()).sum().backward()
    assert reached == [0]
    assert kept


def test_one_template_keeps_less_than_autograd_for_narrow_inputs():
    """fc1 of an MLP, 1 to 4: the input strategy keeps X, not Y, and no gradient of the weight is ever made."""
    made = mixed(lambda: nn.Linear(16, 64), 1, 1, torch.float32)
    x, sizes = torch.randn(100, 16, requires_grad=True), []
    with (
        cheap_gradients(made),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda t: t),
    ):
        made(x).sum()
    assert max(sizes) == 100 * 16


@pytest.mark.parametrize(
    ("inputs", "outputs", "shape", "templates", "input_gradient", "strategy"),
    [
        (1600 * 192, 1600 * 576, (576, 192), 1, True, "input"),  # qkv of ViT-Tiny, one template: X is smaller
        (1600 * 192, 1600 * 192, (192, 192), 1, True, "input"),  # proj: the bias takes no pass of its own
        (1600 * 768, 1600 * 192, (192, 768), 1, True, "output"),  # fc2: Y is smaller by far
        (1600 * 192, 1600 * 576, (576, 192), 1, False, "output"),  # first module: no product wanted below
        (1600 * 192, 1600 * 576, (576, 192), 2, True, "weight"),  # many rows: a pass over the bank is cheap
        (1600 * 192, 1600 * 576, (576, 192), 8, True, "weight"),
        (2 * 2048, 2 * 512, (512, 2048, 1, 1), 2, True, "output"),  # squeeze and excite: few rows, a large bank
    ],
)
def test_the_road_follows_the_shape(inputs, outputs, shape, templates, input_gradient, strategy):
    assert choose_strategy(inputs, outputs, torch.Size(shape), templates, input_gradient) == strategy


def test_what_a_network_may_change_in_place_is_not_kept():
    """Without a bias the output strategy of one template would keep the output itself."""
    shape, sizes = torch.Size((192, 768)), (1600 * 768, 1600 * 192)
    assert choose_strategy(*sizes, shape, 1, True) == "output"
    assert choose_strategy(*sizes, shape, 1, True, bias=False) != "output"
    made = mixed(lambda: nn.Linear(64, 4, bias=False), 1, 1)
    x, downstream = torch.randn(5, 64, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)

    def step():
        coefficients = made.parametrizations.weight.original
        return torch.autograd.grad((nn.functional.relu(made(x), inplace=True) * downstream).sum(), [coefficients, x])

    wanted = step()
    with cheap_gradients(made):
        for ours, theirs in zip(step(), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("templates", "strategy"), [(1, "output"), (3, "input")])
def test_rounded_products_are_never_mixed(templates, strategy):
    """The output strategy would be the cheapest for three templates, too: in float32 it is taken."""
    shape = torch.Size((64, 1024))
    assert choose_strategy(20 * 1024, 20 * 64, shape, 3, True) == "output"
    assert choose_strategy(20 * 1024, 20 * 64, shape, templates, True, half=True) == strategy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto", "eca_nfnet_l0"])
def test_architectures_of_all_kinds_pass_through(name):
    """Depthwise and pointwise convolutions, fused batch norms, standardised weights: outputs stay the same."""
    torch.manual_seed(0)
    from recast_cli.engine.source.source import from_model

    source = from_model(name, timm.create_model(name, num_classes=3), {"num_classes": 3})
    base = mimic(source, plan_layout(source.modules))
    model, images = attach(base), random_images(2, 64)
    wanted = model(images)
    with cheap_gradients(model):
        torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-5)
