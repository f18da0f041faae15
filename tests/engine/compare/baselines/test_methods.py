"""Adaptation methods beside RECAST: where they start, what they train, and which options they refuse."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from fixtures.baselines import OF_PEFT, apply, frozen, perturb
from helpers import CONV, CONV_ARGS, random_images
from torch import nn

from recast_cli.engine.architecture.modules import features
from recast_cli.engine.compare.baselines.rates import LEARNING_RATES
from recast_cli.engine.compare.baselines.registry import METHODS
from recast_cli.engine.errors import RecastError

SEEDED = (*OF_PEFT, "shared-lora")
LINEAR_ONLY = ("lora-xs", "tinylora", "unilora", "fourierft", "waveft", "shared-lora")
ALL_FOUR = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
MOBILE, MOBILE_ARGS = "mobilenetv2_050", {"num_classes": 5}


def floats(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_starts_as_the_network_it_was_given(name):
    model, images = frozen(), random_images()
    before = features(model, images)
    parameters = apply(name, model)
    # Uni-LoRA cannot start at zero, where its gradients vanish
    torch.testing.assert_close(features(model, images), before, rtol=0, atol=1e-4 if name == "unilora" else 1e-6)
    perturb(parameters, scale=1.0 if name == "unilora" else 0.1)
    assert (features(model, images) - before).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_only_what_is_returned_learns(name):
    model = frozen()
    parameters = apply(name, model)
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in parameters} == learning
    assert len(parameters) == len(learning)
    assert not learning & {id(parameter) for parameter in model.get_classifier().parameters()}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", METHODS)
def test_no_method_starts_where_nothing_pulls(name):
    model = frozen()
    parameters = apply(name, model)
    features(model, random_images()).square().mean().backward()
    assert max(parameter.grad.abs().max() for parameter in parameters) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_every_parameter(name, dtype):
    model = frozen()
    parameters = apply(name, model)
    perturb(parameters)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        found = features(model, random_images())
    found.float().square().mean().backward()
    for parameter in parameters:
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDED)
def test_equal_seeds_draw_equal_values_and_disturb_no_others(name):
    def changed(seed):
        """All that a seed decides: what is trained at its start, and the features once that is moved."""
        model = frozen()
        parameters = apply(name, model, seed=seed)
        start = [parameter.detach().clone() for parameter in parameters]
        perturb(parameters)
        with torch.no_grad():
            return [*start, features(model, random_images())]

    state = torch.get_rng_state()
    first, again, other = changed(3), changed(3), changed(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[-1], other[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [  # twelve blocks: qkv 96 x 32, proj 32 x 32, fc1 128 x 32, fc2 32 x 128
        ("lora", {}, 12 * (96 + 32)),
        ("lora", {"rank": 3, "modules": r"blocks\.(10|11)\.attn\.proj"}, 2 * 3 * (32 + 32)),
        ("dora", {}, 12 * (96 + 32 + 96)),
        ("dora", {"rank": 2, "modules": ALL_FOUR}, 12 * (2 * (128 + 64 + 160 + 160) + 96 + 32 + 128 + 32)),
        ("lora-xs", {}, 48),
        ("lora-xs", {"rank": 1}, 12),
        ("lora-xs", {"rank": 1, "modules": ALL_FOUR}, 48),
        ("tinylora", {}, 48),
        ("tinylora", {"u": 1, "weight_tying": 1.0}, 1),
        ("tinylora", {"u": 13, "weight_tying": 0.75}, 3 * 13),
        ("unilora", {}, 48),
        ("unilora", {"theta_d_length": 1}, 1),
        ("fourierft", {}, 48),
        ("fourierft", {"n_frequency": 1}, 12),
        ("waveft", {}, 48),
        ("waveft", {"n_frequency": 1}, 12),
        ("shared-lora", {"entries": 128}, 128),
        ("shared-lora", {"entries": 2}, 2),
        ("shared-lora", {"rank": 2, "modules": ALL_FOUR, "entries": 144}, 144),
    ],
)
def test_trains_as_many_floats_as_its_paper_says(name, options, count):
    assert floats(apply(name, frozen(), **options)) == count


@pytest.mark.parametrize("arguments", [(), (CONV, CONV_ARGS)])
def test_parameters_of_the_network_are_found_by_their_names(arguments):
    conv = bool(arguments)

    def learning(name):
        model = frozen(*arguments)
        METHODS[name](model)
        return {key for key, parameter in model.named_parameters() if parameter.requires_grad}

    head, model = ("fc." if conv else "head."), frozen(*arguments)
    everything = {key for key, _ in model.named_parameters() if not key.startswith(head)}
    assert learning("full") == everything
    assert learning("bias") == {key for key in everything if key.endswith(".bias")}
    marks = (".bn", "bn1.", "downsample.1.") if conv else (".norm", "norm.")
    assert learning("norm") == {key for key in everything if any(mark in key for mark in marks)}


def test_one_dimensional_norms_of_timm_count_as_norms():
    model = frozen("convnext_atto", {"num_classes": 5, "depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)})
    METHODS["norm"](model)
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    wanted = ("stem.1.", "head.norm.", *(f"stages.{n}.downsample.0." for n in (1, 2, 3)))
    assert learning == {key for key, _ in model.named_parameters() if ".norm." in key or key.startswith(wanted)}


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_pointwise_convolutions_too(name):
    model, images = frozen(MOBILE, MOBILE_ARGS), random_images()
    shapes = [m.weight.shape[:2] for key, m in model.named_modules() if key.endswith("conv_pw")]
    with torch.no_grad():
        before = features(model, images)
    parameters = apply(name, model, modules=r".*\.conv_pw")
    assert floats(parameters) == sum(i + o + (o if name == "dora" else 0) for o, i in shapes)
    torch.testing.assert_close(features(model, images), before, rtol=1e-5, atol=1e-6)
    perturb(parameters)
    features(model, images).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters)


@pytest.mark.parametrize("name", LINEAR_ONLY)
def test_other_methods_say_that_they_change_no_convolutions(name):
    model = frozen(MOBILE, MOBILE_ARGS)
    with pytest.raises(RecastError, match=rf"^{name} changes linear layers only, and blocks\.0\.0\.conv_pw is a Conv"):
        METHODS[name](model, modules=r".*\.conv_pw")
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_convolutions_with_groups_are_refused(name):
    with pytest.raises(RecastError, match=r"do not change blocks\.0\.0\.conv_dw, a convolution with groups"):
        METHODS[name](frozen(MOBILE, MOBILE_ARGS), modules=r".*\.conv_dw")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"modules": "qkv"}, r"modules: qkv matches no whole name .* Here are .*qkv") for name in SEEDED),
        ("lora-xs", {"modules": "head"}, "matches no whole name"),
        ("lora-xs", {"modules": "("}, "no regular expression"),
        *((name, {"rank": 0}, "rank is 0, and 1 is the least") for name in (*OF_PEFT[:4], "lora-xs", "shared-lora")),
        *((name, {"rank": 33}, "room for 32") for name in ("lora-xs", "tinylora", "shared-lora")),
        ("lora", {"rank": 1.5}, "rank is 1.5, and a whole number is wanted"),
        ("lora", {"rank": True}, "rank is True, and a whole number is wanted"),
        ("fourierft", {"scaling": "much"}, "scaling is 'much', and a number is wanted"),
        ("lora", {"modules": 3}, "modules is 3, and a text is wanted"),
        ("lora", {"ranks": 2}, "lora has no option 'ranks'. Did you mean 'rank'?"),
        ("bias", {"rank": 2}, "bias has no option 'rank'. It has no options"),
        ("tinylora", {"u": 0}, "u is 0"),
        ("tinylora", {"weight_tying": 1.5}, "weight_tying is 1.5, and a number from 0 to 1"),
        ("unilora", {"theta_d_length": 0}, "theta_d_length is 0"),
        ("unilora", {"theta_d_length": 12 * 4 * 128 + 1}, "room for 6144"),
        ("fourierft", {"n_frequency": 0}, "n_frequency is 0"),
        ("waveft", {"n_frequency": 96 * 32 + 1}, "room for 3072"),
        ("shared-lora", {"entries": 0}, "entries is 0"),
        ("shared-lora", {"entries": 1}, "2 columns and rows that need one each"),
        ("shared-lora", {"entries": 129}, "room for 128"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_changed(name, options, message):
    model = frozen()
    before = list(model.state_dict())
    with pytest.raises(RecastError, match=message) as error:
        METHODS[name](model, **options)
    assert "\n" not in str(error.value)
    assert list(model.state_dict()) == before


def test_networks_without_norms_are_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)

        def get_classifier(self):
            return self.head

    for name, what in (("bias", "biases"), ("norm", "normalisation layers")):
        with pytest.raises(RecastError, match=f"has no {what}"):
            METHODS[name](Bare())


@pytest.mark.parametrize("name", OF_PEFT)
def test_a_missing_peft_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RecastError, match=r"pip install 'recast-cli\[compare\]'"):
        METHODS[name](frozen())


def test_every_method_has_a_rate_and_shows_its_options():
    assert METHODS.keys() == LEARNING_RATES.keys()
    assert all(rate > 0 for rate in LEARNING_RATES.values())
    assert list(inspect.signature(METHODS["lora"]).parameters) == ["model", "rank", "modules", "seed"]


@pytest.mark.slow
def test_rates_come_without_torch_and_methods_without_peft():
    code = """if True:
        import sys
        from recast_cli.engine.compare.baselines.rates import LEARNING_RATES
        assert "torch" not in sys.modules
        from recast_cli.engine.compare.baselines.registry import METHODS
        assert type(METHODS) is dict and "peft" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], check=True)


@pytest.mark.parametrize("name", ["levit_128s", "efficientvit_m0"])
def test_tables_of_attention_biases_are_trained_step_after_step(name):
    """timm keeps what eval mode makes of them, and its graph with it."""
    model = timm.create_model(name, num_classes=5).eval()
    parameters = METHODS["full"](model)
    size = model.pretrained_cfg["input_size"][1]
    tables = [value for key, value in model.named_parameters() if "attention_biases" in key]
    for _ in range(2):
        gradients = torch.autograd.grad(model(torch.randn(1, 3, size, size)).sum(), parameters, allow_unused=True)
    given = {id(each): gradient for each, gradient in zip(parameters, gradients, strict=True)}
    assert all(given[id(table)] is not None for table in tables)
