"""Frozen batch norm's cheap backward pass against torch's own, in float64."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.model.frozen_norms import Frozen, frozen_norms

NORMS = {
    "1d": (lambda: nn.BatchNorm1d(5), (4, 5)),
    "1d, of sequences": (lambda: nn.BatchNorm1d(5), (4, 5, 3)),
    "2d": (lambda: nn.BatchNorm2d(5, eps=0.3), (2, 5, 4, 4)),
    "2d, no weight": (lambda: nn.BatchNorm2d(5, affine=False), (2, 5, 4, 4)),
    "3d": (lambda: nn.BatchNorm3d(5), (2, 5, 3, 3, 3)),
    "timm's, with an activation in place": (lambda: BatchNormAct2d(5, act_layer=nn.ReLU6), (2, 5, 4, 4)),
    "timm's, without one": (lambda: BatchNormAct2d(5, apply_act=False), (2, 5, 4, 4)),
}


def frozen(make):
    """A norm that has seen data, and no longer learns."""
    torch.manual_seed(0)
    made = make().double()
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 2)
    return made.eval().requires_grad_(False)


def run(model, x, downstream):
    """The output, and the gradient by x of its product with `downstream`."""
    y = model(x)
    return [y, *torch.autograd.grad((y * downstream).sum(), x)]


@pytest.fixture
def calls(monkeypatch):
    found = []
    own = Frozen.apply
    monkeypatch.setattr(Frozen, "apply", lambda *inputs: (found.append(inputs), own(*inputs))[1])
    return found


@pytest.mark.parametrize("name", NORMS)
def test_output_and_gradient_are_those_of_torch(name, calls):
    make, shape = NORMS[name]
    made = frozen(make)
    x = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    downstream = torch.randn(shape, dtype=torch.float64)
    wanted = run(made, x, downstream)
    assert not calls
    with frozen_norms(made):
        found = run(made, x, downstream)
    assert len(calls) == 1
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    run(made, x, downstream)
    assert len(calls) == 1, "torch's own again"


def test_16_bits_stay_16_bits_and_channels_last_stays(calls):
    made = frozen(NORMS["2d"][0]).float()
    x = torch.randn(2, 5, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    with frozen_norms(made):
        y, gradient = run(made, x, torch.ones_like(x))
    assert calls
    for tensor in (y, gradient):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    exact = x.detach().float().requires_grad_()
    wanted = run(made, exact, torch.ones_like(exact))
    torch.testing.assert_close(y.float(), wanted[0], rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(gradient.float(), wanted[1], rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("its weight is trained", lambda made: made.weight.requires_grad_(True)),
        ("its bias is trained", lambda made: made.bias.requires_grad_(True)),
        ("it takes the batch's statistics", lambda made: made.train()),
    ],
)
def test_a_norm_that_learns_is_left_alone(what, change, calls):
    made = frozen(NORMS["2d"][0])
    change(made)
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    with frozen_norms(made):
        run(made, x, torch.ones_like(x))
    assert not calls, what


def test_statistics_of_batches_are_left_alone(calls):
    made = frozen(lambda: nn.BatchNorm2d(5, track_running_stats=False))
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    with frozen_norms(made):
        run(made, x, torch.ones_like(x))
    assert not calls


def test_nothing_of_the_input_is_kept():
    """Batch norm of its own keeps its input; here the convolution's output may go as soon as it is normalised."""
    made = frozen(NORMS["2d"][0])
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64, requires_grad=True)

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            made(x)
        return max(sizes)

    assert kept() == x.numel()
    with frozen_norms(made):
        assert kept() == 5


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_035", "test_efficientnet"])
def test_a_whole_network_gives_the_same(name, calls):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).double().eval().requires_grad_(False)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    downstream = torch.randn_like(features(network, x))
    wanted = run(lambda x: features(network, x), x, downstream)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with frozen_norms(network):
        found = run(lambda x: features(network, x), x, downstream)
    assert len(calls) == norms > 5
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
