"""Calibrated bases: nearer to their source than rounding to the nearest, on pictures they never saw."""

import shutil

import pytest
import torch
from helpers import draw_images, pictures
from torch.nn import functional as F

from recast_cli.engine.attach import merge
from recast_cli.engine.base import load_base
from recast_cli.engine.compress import calibrate as calibration
from recast_cli.engine.compress.calibrate import calibrate
from recast_cli.engine.compress.compress import compress
from recast_cli.engine.compress.pictures import MOST, list_pictures, read_pictures
from recast_cli.engine.compress.plan import plan_codes, source_bytes
from recast_cli.engine.compress.sensitivity import FLOOR, sensitivity
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images import normalise
from recast_cli.engine.layout import template_key
from recast_cli.engine.mimic import mimic
from recast_cli.engine.network import build
from recast_cli.engine.plan import plan_layout


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("unseen"), count=8, seed=7)


def distance(source, base, folder):
    """Mean squared distance of logits, on pictures of a folder."""
    architecture = base.known_architecture()
    images = normalise(read_pictures(folder, architecture), architecture.data)
    with torch.no_grad():
        return float(F.mse_loss(merge(base)(images), build(architecture, dict(source.tensors))(images)))


@pytest.mark.parametrize("kind", ["vit", "conv"])
@pytest.mark.parametrize("bits", [3, 4])
def test_it_is_nearer_to_the_source_than_the_nearest_at_equal_bytes(bits, kind, request, data, unseen):
    source = request.getfixturevalue(f"{kind}_source")
    layout = plan_layout(source.modules)
    plain = compress(source, layout, bits=bits, group=16)
    codes = plain.codes
    better = calibrate(source, mimic(source, layout), codes, read_pictures(data, source.architecture))
    assert {n: t.shape for n, t in better.tensors.items()} == {n: t.shape for n, t in plain.tensors.items()}
    assert distance(source, better, unseen) < 0.8 * distance(source, plain, unseen)
    assert better.base_id != plain.base_id


def test_a_bias_takes_the_difference_of_the_mean_outputs(vit_source, data):
    layout = plan_layout(vit_source.modules)
    plan = plan_codes(vit_source, layout, bits=3, group=16)
    base = calibrate(vit_source, mimic(vit_source, layout), plan.codes, read_pictures(data, vit_source.architecture))
    models = build(vit_source.architecture, dict(vit_source.tensors)), merge(base)
    images = normalise(read_pictures(data, vit_source.architecture), vit_source.architecture.data)
    outputs = []
    for model in models:
        model.blocks[5].mlp.fc1.register_forward_hook(lambda m, i, output: outputs.append(output))
        with torch.no_grad():
            model(images)
    mean = [output.mean((0, 1)) for output in outputs]
    assert float((mean[0] - mean[1]).abs().max()) < 0.02 * float(outputs[0].std())


def test_templates_that_several_layers_share(vit_source, data, unseen):
    layout = plan_layout(vit_source.modules, groups=6, templates=2, sets=2)
    shared = plan_layout(vit_source.modules, groups=4, templates=2)
    for each in (layout, shared):
        base = mimic(vit_source, each)
        plan = plan_codes(vit_source, each, bits=3, group=16)
        better = calibrate(vit_source, base, plan.codes, read_pictures(data, vit_source.architecture))
        plain = compress(vit_source, each, bits=3, group=16)
        assert template_key(each.banks[0]) in better.codes
        exact = vit_source if each is layout else None
        if exact:
            assert distance(exact, better, unseen) < distance(exact, plain, unseen)
        assert better.tensors.keys() == plain.tensors.keys()


def test_the_weights_of_errors_are_squared_gradients_of_drawn_decisions(vit_source, data):
    base = mimic(vit_source, plan_layout(vit_source.modules))
    pixels = read_pictures(data, vit_source.architecture)[:2]
    found = sensitivity(base, pixels)
    model = merge(base).requires_grad_(True)
    generator, total = torch.Generator().manual_seed(0), 0
    for picture in normalise(pixels, vit_source.architecture.data):
        probabilities = model(picture[None]).softmax(1)
        label = int(torch.multinomial(probabilities.detach(), 1, generator=generator))
        total = total + torch.autograd.grad(-probabilities[0, label].log(), model.blocks[3].mlp.fc2.weight)[0] ** 2
    expected = total / 2 + FLOOR * (total / 2).mean()
    (bank,) = (bank for bank in base.layout.banks if bank.modules == ("blocks.3.mlp.fc2",))
    assert torch.allclose(found[template_key(bank)][0], expected, rtol=1e-3, atol=1e-8)
    assert found["pos_embed"].shape == vit_source.tensors["pos_embed"].shape


def test_memory_bounds_the_pictures_but_one_is_always_seen(vit_source, data, monkeypatch):
    layout = plan_layout(vit_source.modules)
    plan = plan_codes(vit_source, layout, bits=4, group=16)
    monkeypatch.setattr(calibration, "MEMORY", 1)
    pixels = read_pictures(data, vit_source.architecture)
    one = calibrate(vit_source, mimic(vit_source, layout), plan.codes, pixels)
    same = calibrate(vit_source, mimic(vit_source, layout), plan.codes, pixels[:1])
    assert one.base_id == same.base_id


def test_pictures_are_found_however_they_lie(data, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        shutil.copy(path, flat / f"{number:03}.png")
    assert len(list_pictures(data)) == len(list_pictures(flat)) == 36
    for number in range(300):
        (flat / f"more-{number}.png").touch()
    chosen = [item.path for item in list_pictures(flat)]
    assert len(chosen) == len(set(chosen)) == MOST
    assert chosen == sorted(chosen)


def test_bits_that_round_nothing_need_no_pictures(vit_source, data):
    with pytest.raises(RecastError, match="nothing is rounded"):
        compress(vit_source, plan_layout(vit_source.modules), bits=16, pictures=data)


def test_the_same_pictures_give_the_same_file(vit_source, data, tmp_path):
    layout, size = plan_layout(vit_source.modules), source_bytes(vit_source) // 4
    first = compress(vit_source, layout, size=size, pictures=data, path=tmp_path / "1")
    second = compress(vit_source, layout, size=size, pictures=data, path=tmp_path / "2")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.path.stat().st_size <= size
    assert load_base(first.path).compression["calibrated"]["pictures"] == 36
    assert pictures().shape[0] == 2
