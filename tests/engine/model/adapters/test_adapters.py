"""Every adapter's equation against a literal transcription in NumPy, on frozen weights and on RECAST's mixtures."""

import copy

import numpy as np
import pytest
import timm
import torch
from helpers import perturbed, random_images
from scipy.signal import correlate
from torch import nn
from torch.nn.utils import skip_init

from recast_cli.engine.errors import RecastError
from recast_cli.engine.model.adapters.adapter import ADAPTERS, PACKING, Adapter, Installed, add_learned
from recast_cli.engine.model.attach import attach, merge
from recast_cli.engine.task import options

VIT = ("melo", "adaptformer", "dora", "rosa", "rosa-mlp")
CONV = ("piggyback", "clr")
MODULE = "blocks.7.attn.qkv"
GIVEN = {"rank": 2, "density": 0.05, "seed": 3}


@pytest.fixture(params=[True, False], ids=["joined", "alone"])
def joined(request):
    return request.param


def base_of(name, vit_base, conv_base):
    return vit_base if name in VIT else conv_base


def put_into(base, name, joined, moved=0.3, **given):
    """The base's network, its coefficients moved, with an adapter whose parameters are moved by `moved`."""
    model = (attach if joined else merge)(base, perturbed(base))
    installed = Installed(model, name, GIVEN | given)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for places in installed.fixed.values():
            places.copy_(places * 3 + 1)
        scale = 0.03 * moved if name == "piggyback" else moved  # real-valued masks are that small
        for value in installed.parameters.values():
            value.add_(scale * torch.randn(value.shape, generator=generator))
    return model, installed


def weight(model, name):
    return model.get_submodule(name).weight.detach().double().numpy()


def close(found, wanted, atol=2e-6):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def recast_weight(base, name):
    """Equation 1 of RECAST, term by term."""
    (bank,) = (each for each in base.layout.banks if name in each.modules)
    templates = base.templates(bank).double().numpy()
    place, (sets, count) = base.layout.slices()[name]
    coefficients = perturbed(base)[place].double().numpy().reshape(sets, count)
    total = np.zeros_like(templates[0])
    for k in range(sets):
        for i in range(count):
            total += coefficients[k, i] * templates[i]
    return total / sets


def values(installed, place, *keys):
    return [installed.parameters[f"{place}.{key}"].detach().double().numpy() for key in keys]


def test_the_names_are_those_of_the_options():
    assert ADAPTERS.keys() == options.ADAPTERS.keys()
    assert PACKING.keys() <= ADAPTERS.keys()


def test_melo_adds_a_product_to_queries_and_values(vit_base, joined):
    model, installed = put_into(vit_base, "melo", joined)
    a, b = values(installed, MODULE, "a", "b")
    assert (a.shape, b.shape) == ((2, 2, 32), (2, 32, 2))
    wanted = recast_weight(vit_base, MODULE)
    wanted[:32] += b[0] @ a[0]
    wanted[64:] += b[1] @ a[1]
    close(weight(model, MODULE), wanted)


def test_dora_learns_magnitude_and_direction_of_queries_keys_and_values(vit_base, joined):
    """Equation 9: m W / |W|; DoRA adds a product to the direction."""
    model, installed = put_into(vit_base, "dora", joined)
    a, b, m = values(installed, MODULE, "a", "b", "m")
    assert m.shape == (3, 32)
    mixed, wanted = recast_weight(vit_base, MODULE), np.zeros((96, 32))
    for part in range(3):
        for row in range(32):
            v = mixed[part * 32 + row] + b[part, row] @ a[part]
            wanted[part * 32 + row] = m[part, row] * v / np.sqrt((v**2).sum())
    close(weight(model, MODULE), wanted)


def test_dora_s_magnitude_starts_at_the_norms_of_the_mixture(vit_base, joined):
    _, installed = put_into(vit_base, "dora", joined, moved=0)
    (m,) = values(installed, MODULE, "m")
    close(m.ravel(), np.linalg.norm(recast_weight(vit_base, MODULE), axis=1))


@pytest.mark.parametrize("module", [MODULE, "blocks.7.attn.proj"])
def test_rosa_adds_a_product_and_free_values_at_places(vit_base, joined, module):
    model, installed = put_into(vit_base, "rosa", joined)
    a, b = values(installed, f"{module}.low_rank", "a", "b")
    (free,) = values(installed, f"{module}.sparse", "values")
    places = installed.fixed[f"{module}.sparse.places"].numpy()
    # a module outside the layout is changed from its frozen weight
    wanted = recast_weight(vit_base, module) if module == MODULE else weight(merge(vit_base), module)
    wanted = wanted.copy()
    assert len(free) == round(0.05 * wanted.size)
    for part, rows in enumerate(np.split(np.arange(len(wanted)), len(a))):
        wanted[rows] += b[part] @ a[part]
    for value, place in zip(free, places, strict=True):
        wanted[place // 32, place % 32] += value
    close(weight(model, module), wanted)


def test_rosa_mlp_has_fewer_than_150_values(vit_base, joined):
    model, installed = put_into(vit_base, "rosa-mlp", joined, density=1e-5)
    assert installed.floats == 24  # one at least for each of 24 weights
    name = "blocks.3.mlp.fc2"
    (free,) = values(installed, f"{name}.sparse", "values")
    wanted = weight(merge(vit_base), name).copy()
    wanted.flat[installed.fixed[f"{name}.sparse.places"].item()] += free[0]
    close(weight(model, name), wanted)


def test_rosa_mlp_on_a_vit_small_is_144_numbers():
    """The paper's row of fewer than 150: twelve blocks of 384 channels."""
    model = nn.Module()
    model.pretrained_cfg = {}
    model.blocks = nn.Sequential(*(nn.Module() for _ in range(12)))
    for block in model.blocks:
        block.mlp = nn.Module()
        block.mlp.fc1, block.mlp.fc2 = skip_init(nn.Linear, 384, 1536), skip_init(nn.Linear, 1536, 384)
    assert Installed(model, "rosa-mlp", {}).floats == 144


def test_adaptformer_adds_a_bottleneck_beside_the_mlp(vit_base, joined):
    model, installed = put_into(vit_base, "adaptformer", joined)
    plain = merge(vit_base, perturbed(vit_base))
    down, bias, up, end = values(installed, "blocks.7.adaptformer", "down.weight", "down.bias", "up.weight", "up.bias")
    assert (down.shape, up.shape) == ((2, 32), (32, 2))
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    block = plain.blocks[7]
    with torch.no_grad():
        stream = (x + block.attn(block.norm1(x))).double().numpy()
        before, after = block(x), model.blocks[7](x)
    branch = np.maximum(stream @ down.T + bias, 0) @ up.T + end
    close(after.double().numpy(), before.double().numpy() + 0.1 * branch, atol=2e-5)


def test_adaptformer_takes_the_stream_of_every_pass_anew(vit_base):
    model, _ = put_into(vit_base, "adaptformer", True)
    with torch.no_grad():
        first, second = model(random_images(seed=1)), model(random_images(seed=2))
        assert torch.equal(model(random_images(seed=1)), first)
        assert not torch.equal(first, second)


def test_piggyback_masks_what_is_not_above_the_threshold(conv_base, joined):
    name = "layer4.0.conv2"
    model, installed = put_into(conv_base, "piggyback", joined)
    (real,) = values(installed, name, "real")
    mask = np.zeros_like(real)
    mask[real > 5e-3] = 1
    assert 0.1 < mask.mean() < 0.9
    wanted = recast_weight(conv_base, name) if joined else weight(merge(conv_base, perturbed(conv_base)), name)
    close(weight(model, name), wanted * mask)


def test_piggyback_s_gradient_passes_straight_through(conv_base):
    """Equation 2 of PiggyBack's section 3: the mask's own gradient, dL/dW_masked * W, is the real numbers'."""
    name = "layer2.0.conv1"
    model, installed = put_into(conv_base, "piggyback", False)
    downstream = torch.randn(model.get_submodule(name).weight.shape, generator=torch.Generator().manual_seed(0))
    real = installed.parameters[f"{name}.real"]
    (found,) = torch.autograd.grad((model.get_submodule(name).weight * downstream).sum(), real)
    close(found.double().numpy(), weight(merge(conv_base, perturbed(conv_base)), name) * downstream.double().numpy())


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_masks_are_kept_as_bits(count):
    pack, unpack = PACKING["piggyback"]
    real = 5e-3 + 1e-3 * torch.randn(count, generator=torch.Generator().manual_seed(count))
    packed = pack(real)
    assert packed.numpy().tolist() == np.packbits(real.numpy() > np.float32(5e-3)).tolist()
    assert torch.equal(unpack(packed, real) > 5e-3, real > 5e-3)


def test_clr_convolves_every_channel_after_each_convolution(conv_base, joined):
    model, installed = put_into(conv_base, "clr", joined)
    plain = merge(conv_base, perturbed(conv_base))
    name = "layer2.0.conv1"
    (kernel,) = values(installed, f"{name}.ghost", "weight")
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (each.get_submodule(name)(x)[0].double().numpy() for each in (plain, model))
    wanted = np.stack([correlate(np.pad(c, 1), k[0], "valid") for c, k in zip(before, kernel, strict=True)])
    close(after, wanted, atol=2e-5)
    assert len(installed.pieces) == sum(isinstance(each, nn.Conv2d) for each in plain.modules())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_at_the_start_nothing_is_changed(name, vit_base, conv_base, joined):
    base = base_of(name, vit_base, conv_base)
    model = (attach if joined else merge)(base, perturbed(base))
    before = torch.get_rng_state()
    Installed(model, name, GIVEN)
    assert torch.equal(torch.get_rng_state(), before)
    images = random_images(3)
    torch.testing.assert_close(model(images), merge(base, perturbed(base))(images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_gives_the_logits_of_the_attached_network(name, vit_base, conv_base, joined):
    base = base_of(name, vit_base, conv_base)
    model, installed = put_into(base, name, joined, moved=0.05)
    adapter = installed.learned([value.detach() for value in installed.parameters.values()])
    merged, images = merge(base, perturbed(base), adapter=adapter), random_images(3)
    wanted = model(images)
    torch.testing.assert_close(merged(images), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - merge(base, perturbed(base))(images)).abs().max() > 1e-3  # what was learned does matter
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert any("parametrizations" in key for key in merged.state_dict()) is False
    beside = {"adaptformer", "clr"}
    assert (merged.state_dict().keys() == merge(base).state_dict().keys()) == (name not in beside)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_reach_every_parameter(name, dtype, vit_base, conv_base, joined):
    base = base_of(name, vit_base, conv_base)
    # a narrow bottleneck may be dead: below 0 for every token, as may happen with ReLU
    model, installed = put_into(base, name, joined, moved=0.05, rank=16)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        found = model(random_images())
    found.float().square().mean().backward()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(learning) == len(installed.parameters) + joined * len(base.layout.modules)
    for parameter in learning:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["melo", "adaptformer", "dora", "rosa"])
def test_equal_seeds_draw_equal_values_and_disturb_no_others(name, vit_base):
    model = merge(vit_base)

    def start(seed):
        return list(Installed(copy.deepcopy(model), name, {"seed": seed}).parameters.values())

    state = torch.get_rng_state()

    first, again, other = start(1), start(1), start(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_network_of_the_other_kind_is_refused(name, vit_base, conv_base):
    other = conv_base if name in VIT else vit_base
    with pytest.raises(RecastError, match=f"The adapter {name} needs") as caught:
        Installed(merge(other), name, {})
    known = CONV if name in VIT else VIT
    assert all(each in str(caught.value.hint) for each in known)


def test_sparse_places_are_those_of_the_largest_gradients(vit_base):
    _, installed = put_into(vit_base, "rosa", False)
    generator = torch.Generator().manual_seed(0)
    scores = {}

    def importance(names):
        for name in names:
            scores[name] = torch.rand(96 if "qkv" in name else 32, 32, generator=generator)
        return scores

    installed.choose(importance)
    for name, score in scores.items():
        found = installed.fixed[f"{name}.sparse.places"].long()
        assert set(found.tolist()) == set(np.argsort(score.numpy().ravel())[::-1][: len(found)].tolist())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "missing or too many"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "missing or too many"),
        (lambda tensors: tensors.update({f"{MODULE}.a": torch.zeros(3)}), r"has shape \(3,\) instead of"),
    ],
)
def test_another_network_s_tensors_are_refused(change, message, vit_base):
    _, installed = put_into(vit_base, "melo", False)
    adapter = installed.learned(list(installed.parameters.values()))
    change(adapter.tensors)
    with pytest.raises(RecastError, match=message):
        add_learned(merge(vit_base), Adapter("melo", adapter.options, adapter.tensors))


def architecture(name, **args):
    return timm.create_model(name, num_classes=5, **args).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["tiny_vit_5m_224", "efficientformer_l1"])
def test_rows_that_go_by_heads_are_not_taken_for_queries(name):
    with pytest.raises(RecastError, match="needs attention with queries, keys and values"):
        Installed(architecture(name), "melo", {})


def test_attention_that_takes_its_queries_elsewhere_has_none_here():
    places = Installed(architecture("gcvit_xxtiny"), "melo", {}).pieces
    assert places
    assert not any(".blocks.1." in place for place in places)  # every second block is a global one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poolformer_s12", "focalnet_tiny_srf", "convformer_s18"])
def test_branches_beside_mlps_want_channels_at_the_end(name):
    with pytest.raises(RecastError, match="The adapter adaptformer needs"):
        Installed(architecture(name), "adaptformer", {})


def test_a_classifier_that_is_a_convolution_gets_no_ghost():
    places = Installed(architecture("dla34"), "clr", {}).parameters
    assert places
    assert not any(place.startswith("fc.") for place in places)


def test_rows_of_zeros_stay_finite(vit_base):
    model = merge(vit_base)
    with torch.no_grad():
        model.get_submodule(MODULE).weight[5] = 0
    installed = Installed(model, "dora", {})
    model(random_images(2)).square().sum().backward()
    assert all(value.grad.isfinite().all() for value in installed.parameters.values())
    close(weight(model, MODULE)[5], 0)
