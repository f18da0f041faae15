"""In which precision and layout networks run, by hardware and by network."""

import pytest
import timm
import torch
from helpers import random_images, save_folder
from torch import nn

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.architecture.modules import features
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import attach, coefficient_parameters
from recast_cli.engine.runtime import precision as engine_precision
from recast_cli.engine.runtime.device import ready
from recast_cli.engine.runtime.precision import precision, quick_attention, training_precision
from recast_cli.engine.source.open import open_source
from recast_cli.engine.task.options import AdaptOptions

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("network", "device", "has_bfloat16", "expected"),
    [
        ("vit", CPU, True, torch.bfloat16),
        ("vit", CPU, False, torch.float32),
        ("vit", CUDA, False, torch.bfloat16),
        ("vit", torch.device("mps"), True, torch.float32),
        ("depthwise", CPU, True, torch.float32),  # the backward pass of grouped convolutions is slow there
        ("depthwise", CUDA, False, torch.bfloat16),
    ],
)
def test_training_is_in_bfloat16_where_that_is_fast(network, device, has_bfloat16, expected, monkeypatch):
    monkeypatch.setattr(engine_precision, "cpu_gains_from_bfloat16", lambda: has_bfloat16)
    names = {"vit": "test_vit", "depthwise": "mobilenetv2_035"}
    model = timm.create_model(names[network])
    assert training_precision(model, device) == expected
    assert training_precision(model, device, "float32") == torch.float32
    assert training_precision(model, device, "bfloat16") == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "seconds", "expected"),
    [
        ({"avx512_bf16": True}, {torch.bfloat16: 1.0, torch.float32: 2.0}, True),
        ({"avx512_bf16": True}, {torch.bfloat16: 2.0, torch.float32: 1.0}, False),  # a Xeon without its AMX
        ({"amx_bf16": True}, {torch.bfloat16: 1.0, torch.float32: 8.0}, True),
        ({"avx2": True}, {torch.bfloat16: 1.0, torch.float32: 2.0}, False),  # emulated: slow elsewhere in the network
        (None, {}, False),  # a torch that cannot tell
    ],
)
def test_a_cpu_gains_from_bfloat16_where_its_products_are_faster(capabilities, seconds, expected, monkeypatch):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(engine_precision, "seconds_of_products", seconds.get)
    assert engine_precision.cpu_gains_from_bfloat16.__wrapped__() is expected


def test_products_are_timed_on_one_core():
    before = torch.get_num_threads()
    assert 0 < engine_precision.seconds_of_products(torch.float32) < 1
    assert torch.get_num_threads() == before


def test_a_cpu_measures_in_full_precision():
    one = torch.ones(2, 2)
    with precision(CPU):
        assert (one @ one).dtype == torch.float32
    with precision(CPU, torch.bfloat16):
        assert (one @ one).dtype == torch.bfloat16


def test_attention_is_put_back_as_it_was_and_computes_the_same(vit_base):
    model = ready(attach(vit_base), CPU)
    parameters, images = coefficient_parameters(model, vit_base), random_images(4)
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]

    def gradients():
        return torch.autograd.grad(features(model, images).square().mean(), parameters)

    wanted = gradients()
    with quick_attention(model, CPU, torch.bfloat16):
        assert fused
        assert not any(module.fused_attn for module in fused)
        found = gradients()
    assert all(module.fused_attn for module in fused)
    torch.testing.assert_close(found, wanted)
    with quick_attention(model, CPU, torch.float32):
        assert all(module.fused_attn for module in fused)
    model.patch_embed.num_patches = engine_precision.MANY_TOKENS
    with quick_attention(model, CPU, torch.bfloat16):  # maps of so many tokens would fill the memory
        assert all(module.fused_attn for module in fused)


def test_convolutions_are_laid_out_channels_last_and_compute_the_same(conv_base):
    images = random_images(4)
    plain, model = attach(conv_base), ready(attach(conv_base), CPU)
    kernels = [tensor for tensor in model.parameters() if tensor.ndim == 4 and tensor.shape[1] > 1]
    assert kernels
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in kernels)
    torch.testing.assert_close(features(model, images), features(plain, images), atol=1e-5, rtol=1e-4)


def test_what_generated_kernels_compute_is_laid_out_channels_last_too(tmp_path):
    """The first convolution and all depthwise ones are generated: nothing but the images could say how to lay out."""
    source = open_source(str(save_folder(tmp_path / "network", "mobilenetv2_035", {"num_classes": 10})))
    base = mimic(source, plan_layout(source.modules))
    assert "conv_stem" in base.layout.modules
    model, found = ready(attach(base, image_size=64), CPU), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output, name=name: found.update({name: output}))
    features(model, torch.randn(2, 3, 64, 64))
    assert len(found) > 20
    assert [name for name, map in found.items() if not map.is_contiguous(memory_format=torch.channels_last)] == []


@pytest.mark.slow
def test_bfloat16_learns_nearly_what_float32_learns(vit_base, data, every_epoch_counts, tmp_path):
    tasks = {
        name: adapt(
            vit_base, data, name, tmp_path / "tasks" / name, AdaptOptions(epochs=2, precision=name), device="cpu"
        )
        for name in ("float32", "bfloat16")
    }
    full, half = (task.vector - vit_base.vector for task in tasks.values())
    assert float(full.norm()) > 1e-2
    assert float((half - full).norm()) < 0.3 * float(full.norm())
    assert not torch.equal(half, full)
    assert [task.record["precision"] for task in tasks.values()] == ["float32", "bfloat16"]
