"""Calibrated bases: nearer to their source than rounding to the round_to_nearest, on images they never saw."""

import itertools
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import draw_images, perturbed
from torch.nn import functional as F

from recast_cli.engine.architecture.build import build
from recast_cli.engine.base.file import load_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.images.transforms import normalise
from recast_cli.engine.images.unlabelled import CALIBRATION_IMAGES, list_images, read_images
from recast_cli.engine.layout.layout import template_key
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.compress import fisher as curving
from recast_cli.engine.mimic.compress.compress import compress
from recast_cli.engine.mimic.compress.fisher import DAMPING, FLOOR, ROW_DAMPING, curvatures, drawn_loss, squares
from recast_cli.engine.mimic.compress.matrices import matrices
from recast_cli.engine.mimic.compress.plan import source_bytes
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import merge


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("unseen"), count=8, seed=7)


def divergence(source, base, folder):
    """Mean KL(source | base), in nats, on images of a folder."""
    architecture = base.known_architecture()
    images = normalise(read_images(folder, architecture.preprocessing), architecture.preprocessing)
    with torch.no_grad():
        wanted = build(architecture, dict(source.tensors))(images).double().log_softmax(1)
        found = merge(base)(images).double().log_softmax(1)
    return float(F.kl_div(found, wanted, log_target=True, reduction="batchmean"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "conv"])
@pytest.mark.parametrize("numbers", [{"bits": 3, "group": 16}, {"bits": 4, "group": 16}, {"times": 4}, {"times": 3}])
def test_it_is_nearer_to_the_source_than_the_nearest_at_equal_bytes(numbers, kind, request, data, unseen):
    source = request.getfixturevalue(f"{kind}_source")
    layout = plan_layout(source.modules)
    if "times" in numbers:
        numbers = {"size": source_bytes(source) // numbers["times"]}
    plain = compress(source, layout, **numbers)
    better = compress(source, layout, calibrate=data, **numbers)
    assert divergence(source, better, unseen) < 0.7 * divergence(source, plain, unseen)
    assert better.base_id != plain.base_id
    assert better.compression["calibrated"] == {"images": 36, "pictures": 36}


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [{"bits": 3, "group": 16}, {"size": 130_000}])
def test_templates_that_several_layers_share(numbers, vit_source, data, unseen):
    for groups, templates, sets in ((6, 2, 2), (4, 2, 1)):
        layout = plan_layout(vit_source.modules, groups=groups, templates=templates, sets=sets)
        exact = mimic(vit_source, layout)
        plain, better = (compress(vit_source, layout, calibrate=each, **numbers) for each in (None, data))
        assert template_key(layout.banks[0]) in better.codes

        class Mimicked:
            """A source with the weights that the shared templates make."""

            tensors = exact.state()

        assert divergence(Mimicked, better, unseen) < divergence(Mimicked, plain, unseen)


@pytest.mark.parametrize("classifies", [True, False])
def test_a_curvature_is_of_the_gradients_of_drawn_decisions(vit_source, data, classifies, monkeypatch):
    """Against autograd on templates and weights themselves, of a bank that several layers mix."""
    monkeypatch.setattr(curving, "VIEWS", 1)
    base = mimic(vit_source, plan_layout(vit_source.modules, groups=4, templates=2))
    vector = perturbed(base)
    tensors = dict(base.tensors)
    for module, (place, shape) in base.layout.slices().items():
        tensors[f"coefficients.{module}"] = vector[place].reshape(shape)
    base = replace(base, tensors=tensors)
    bank = base.layout.banks[0]
    pixels = read_images(data, vit_source.architecture.preprocessing)[:3]
    if not classifies:
        monkeypatch.setattr(type(base.architecture), "classifies", False)
    names = (template_key(bank), "head.weight", "pos_embed")
    found = curvatures(base, pixels, {n: matrices(n, tensors[n].shape) for n in names})

    templates = base.templates(bank).requires_grad_(True)
    model = merge(base)
    weights = {"head.weight": model.head.weight, "pos_embed": model.pos_embed}
    for weight in weights.values():
        weight.requires_grad_(True)
    mixed = {f"{m}.weight": torch.tensordot(base.coefficients(m).mean(0), templates, dims=1) for m in bank.modules}
    generator = torch.Generator().manual_seed(0)
    sums = dict.fromkeys(names, 0)
    rows = dict.fromkeys(names, 0)
    for image in normalise(pixels, base.architecture.preprocessing):
        logits = torch.func.functional_call(model, mixed, (image[None],))
        vector = 2.0 * torch.randint(0, 2, logits.shape, generator=generator)[0] - 1
        if classifies:
            p = logits.detach().softmax(1)[0]
            vector = (torch.eye(5) - torch.outer(p, torch.ones(5))) @ torch.diag(p.sqrt()) @ vector
        loss = logits[0] @ vector
        gradients = torch.autograd.grad(loss, [templates, *weights.values()], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            gradient = gradient.reshape(matrices(name, gradient.shape))
            sums[name] = sums[name] + torch.einsum("nri,nrj->nij", gradient, gradient) / 3
            rows[name] = rows[name] + torch.einsum("nri,nsi->nrs", gradient, gradient) / 3
    for name in names:
        expected = damped(rows[name], ROW_DAMPING)
        expected /= expected.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        assert torch.allclose(found[name].rows, expected, rtol=1e-2, atol=1e-3 * float(expected.max())), name
        expected = damped(sums[name], DAMPING)
        assert torch.allclose(found[name].columns, expected, rtol=1e-2, atol=1e-3 * float(expected.max())), name


def damped(products, share):
    mean = products.diagonal(dim1=1, dim2=2).mean(1)
    return products + share * mean[:, None, None] * torch.eye(products.shape[-1])


@pytest.mark.slow
@pytest.mark.parametrize("classifies", [True, False])
def test_drawn_gradients_have_the_fisher_information_for_a_mean(classifies):
    """Of logits that is diag(p) - p p^T, of features the identity."""
    found = torch.tensor([[2.0, -1.0, 0.5, 0.0]], requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    outer = []
    for _ in range(4000):
        gradient = torch.autograd.grad(drawn_loss(found, classifies, generator), found)[0][0]
        outer.append(torch.outer(gradient, gradient))
    p = found.detach().softmax(1)[0]
    expected = torch.diag(p) - torch.outer(p, p) if classifies else torch.eye(4)
    assert torch.allclose(torch.stack(outer).mean(0), expected, atol=0.05 * float(expected.max()))


@pytest.mark.slow
def test_half_of_the_form_is_the_divergence(vit_source, data):
    """1/2 d^T F d of small random changes of one matrix, against the divergence that they make."""
    base = mimic(vit_source, plan_layout(vit_source.modules))
    key = template_key(base.layout.banks[0])
    pixels = read_images(data, vit_source.architecture.preprocessing)
    curve = curvatures(base, pixels, {key: matrices(key, base.tensors[key].shape)})[key]
    # what damping adds is known exactly: diagonals are larger by it on average
    columns = damped(curve.columns, -DAMPING / (1 + DAMPING)).double()
    rows = damped((1 + ROW_DAMPING) * curve.rows, -ROW_DAMPING / (1 + ROW_DAMPING)).double()
    generator = torch.Generator().manual_seed(1)
    foreseen, measured = 0.0, 0.0
    images = normalise(pixels, base.architecture.preprocessing)
    with torch.no_grad():
        before = merge(base)(images).double().log_softmax(1)
        for _ in range(8):
            change = 0.02 * torch.randn(base.tensors[key].shape, generator=generator)
            off = change.reshape(matrices(key, change.shape)).double()
            foreseen += 0.5 * float(torch.einsum("nrs,nri,nij,nsj->", rows, off, columns, off))
            other = merge(replace(base, tensors={**base.tensors, key: base.tensors[key] + change}))
            after = other(images).double().log_softmax(1)
            measured += float(F.kl_div(after, before, log_target=True, reduction="batchmean"))
    assert 0.4 < foreseen / measured < 2.5


def test_what_no_decision_depends_on_is_still_stored(vit_source, data, monkeypatch):
    """As finely as if a value of it mattered 1/20 of the mean one."""
    base = mimic(vit_source, plan_layout(vit_source.modules))
    pixels = read_images(data, vit_source.architecture.preprocessing)[:2]
    shapes = {name: matrices(name, base.tensors[name].shape) for name in ("head.weight", "pos_embed")}
    before = curvatures(base, pixels, shapes)
    read = curving.gradient_of

    def unused(base, model, name):
        return (lambda: torch.zeros(base.tensors[name].shape)) if name == "pos_embed" else read(base, model, name)

    monkeypatch.setattr(curving, "gradient_of", unused)
    found = curvatures(base, pixels, shapes)
    assert torch.equal(found["head.weight"].columns, before["head.weight"].columns)
    counts = [squares(each.rows)[..., None] * squares(each.columns)[:, None] for each in found.values()]
    values = sum(each.numel() for each in counts)
    assert float(counts[1].mean()) == pytest.approx(FLOOR * float(counts[0].sum()) / values, rel=1e-3)


@pytest.mark.slow
def test_a_matrix_of_many_rows_or_columns_has_a_diagonal_alone(vit_source, data, monkeypatch):
    base = mimic(vit_source, plan_layout(vit_source.modules))
    pixels = read_images(data, vit_source.architecture.preprocessing)[:2]
    shapes = {"head.weight": matrices("head.weight", base.tensors["head.weight"].shape)}
    whole = curvatures(base, pixels, shapes)["head.weight"]
    monkeypatch.setattr(curving, "WIDEST", 8)
    found = curvatures(base, pixels, shapes)["head.weight"]
    assert found.columns.ndim == 2
    assert torch.allclose(found.columns, squares(whole.columns), rtol=1e-4)
    assert whole.rows.ndim == 3  # five classes
    for numbers in ({"bits": 3}, {"size": source_bytes(vit_source) // 4}):
        assert compress(vit_source, plan_layout(vit_source.modules), calibrate=data, **numbers).codes


def test_images_are_found_however_they_lie(data, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        shutil.copy(path, flat / f"{number:03}.png")
    assert len(list_images(data)) == len(list_images(flat)) == 36
    for number in range(CALIBRATION_IMAGES):
        (flat / f"more-{number}.png").touch()
    chosen = [item.path for item in list_images(flat)]
    assert len(chosen) == len(set(chosen)) == CALIBRATION_IMAGES
    assert chosen == sorted(chosen)


def test_bits_that_round_nothing_need_no_images(vit_source, data):
    with pytest.raises(RecastError, match="nothing is rounded"):
        compress(vit_source, plan_layout(vit_source.modules), bits=16, calibrate=data)


@pytest.mark.slow
def test_the_same_images_give_the_same_file(vit_source, data, tmp_path):
    layout, size = plan_layout(vit_source.modules), source_bytes(vit_source) // 4
    first = compress(vit_source, layout, size=size, calibrate=data, path=tmp_path / "1")
    second = compress(vit_source, layout, size=size, calibrate=data, path=tmp_path / "2")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.path.stat().st_size <= size
    assert load_base(first.path).compression["calibrated"]["images"] == 36


@pytest.mark.parametrize("block", [1, 3, 192])
def test_products_are_those_of_all_rows(block, monkeypatch):
    monkeypatch.setattr(curving, "BLOCK", block)
    gradients = torch.randn(2, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    sums: dict = {}
    for gradient in gradients:
        curving.add(sums, "w", gradient)
    for found, view in zip(sums["w"], (gradients, gradients.mT), strict=True):
        wanted = torch.zeros(2, view.shape[2], view.shape[2])
        for gradient in view:
            for n, i, j in itertools.product(range(2), range(view.shape[2]), range(view.shape[2])):
                wanted[n, i, j] += (gradient[n, i] * gradient[n, j]).sum()
        torch.testing.assert_close(curving.mirrored(found), wanted)
