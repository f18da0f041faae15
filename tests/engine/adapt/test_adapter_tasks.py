"""A task with an adapter: learned, written, resumed, measured; files that are damaged; others that stay as they are."""

import json

import pytest
import torch
from helpers import random_images
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.adapt.importance import squared_gradients
from recast_cli.engine.errors import RecastError
from recast_cli.engine.measure.evaluate import evaluate
from recast_cli.engine.model.attach import merge
from recast_cli.engine.storage.tensors import read_tensors
from recast_cli.engine.storage.writer import write_tensors
from recast_cli.engine.task.folder import ADAPTER
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import ADAPTERS, AdaptOptions
from recast_cli.engine.task.task import load_task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("every_epoch_counts")]
CONV = ("piggyback", "clr")


def options(name, **given):
    # large enough for a mask to cross its threshold in a few steps
    return AdaptOptions(**{"epochs": 2, "batch_size": 8, "adapter": name, "adapter_lr": 3e-3, **given})


def run(base, data, folder, chosen, **rest):
    return adapt(base, data, folder.name, folder, chosen, device="cpu", **rest)


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "task.yaml"}


@pytest.fixture(params=ADAPTERS)
def name(request):
    return request.param


@pytest.fixture
def base(name, vit_base, conv_base):
    return conv_base if name in CONV else vit_base


@pytest.mark.parametrize("joined", [True, False])
def test_what_was_learned_is_measured_again_from_its_files(name, base, joined, data, tmp_path):
    task = run(base, data, tmp_path / "tasks" / name, options(name, coefficients=joined))
    again = load_task(tmp_path / "tasks" / name, base)
    about = task.record["adapter"]
    assert about["name"] == name
    assert about["floats"] > 0
    assert torch.equal(again.vector, base.vector) is not joined
    assert task.record["coefficients"] == (base.layout.coefficients if joined else 0)
    changed = merge(base, again.vector, adapter=again.adapter)
    assert (changed(random_images()) - merge(base, again.vector)(random_images())).abs().max() > 1e-4
    # the recorded accuracy is what the files give; `judge` in place of accuracies is for validation alone
    found = evaluate(base, again, data, device="cpu")
    assert found.top1 == task.record["metrics"]["test_top1"]


def test_a_killed_run_goes_on_to_the_same_bytes(name, base, data, tmp_path):
    chosen = options(name, epochs=3)
    run(base, data, tmp_path / "whole" / "t", chosen)

    def kill(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "cut" / "t"
    with pytest.raises(KeyboardInterrupt):
        run(base, data, folder, chosen, on_epoch=kill)
    assert not (folder / ADAPTER).exists()
    run(base, data, folder, chosen)
    assert everything(folder) == everything(tmp_path / "whole" / "t")


def test_the_file_says_what_it_is(vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    task = run(vit_base, data, folder, options("melo", rank=2))
    with safe_open(folder / ADAPTER, "pt") as file:
        metadata = json.loads(file.metadata()["recast"])
    assert metadata == {
        "kind": "adapter",
        "format": 1,
        "base_id": vit_base.base_id,
        "adapter": "melo",
        "options": {"rank": 2, "seed": 0},
    }
    tensors = load_file(folder / ADAPTER)
    assert sum(tensor.numel() for tensor in tensors.values()) == task.record["adapter"]["floats"] == 12 * 2 * 2 * 64


def test_masks_take_a_bit_an_entry(conv_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    task = run(conv_base, data, folder, options("piggyback"))
    entries = task.record["adapter"]["floats"]
    tensors = load_file(folder / ADAPTER)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.uint8}
    assert entries / 8 <= sum(tensor.numel() for tensor in tensors.values()) <= entries / 8 + len(tensors)


def test_a_task_adapted_anew_without_an_adapter_has_none(vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    run(vit_base, data, folder, options("melo"))
    run(vit_base, data, folder, AdaptOptions(epochs=1), restart=True)
    assert not (folder / ADAPTER).exists()
    assert load_task(folder, vit_base).adapter is None


def test_six_tasks_stay_as_they_are(vit_base, data, tmp_path):
    home, names = tmp_path / "tasks", ("melo", "adaptformer", "dora", "rosa", "rosa-mlp", None)
    for place, adapter in enumerate(names):
        run(vit_base, data, home / f"t{place}", options(adapter, adapter_lr=adapter and 1e-2, epochs=1))
    before = {place: everything(home / f"t{place}") for place in range(6)}
    logits = [measured(vit_base, load_task(home / f"t{place}", vit_base)) for place in range(6)]
    run(vit_base, data, home / "seventh", options("rosa", epochs=1, seed=5))
    assert {place: everything(home / f"t{place}") for place in range(6)} == before
    for place, found in enumerate(logits):
        assert torch.equal(measured(vit_base, load_task(home / f"t{place}", vit_base)), found)


def measured(base, task):
    with torch.no_grad():
        return merge(base, task.vector, adapter=task.adapter)(random_images(4))


def test_a_damaged_or_foreign_adapter_is_refused(vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    run(vit_base, data, folder, options("melo", epochs=1))
    path, content = folder / ADAPTER, (folder / ADAPTER).read_bytes()
    path.unlink()
    with pytest.raises(RecastError, match=r"adapter\.safetensors"):
        load_task(folder, vit_base)
    path.write_bytes(content[:100])
    with pytest.raises(RecastError, match=r"adapter\.safetensors"):
        load_task(folder, vit_base)
    bound = {"kind": "adapter", "format": 1, "adapter": "melo", "options": {"rank": 3, "seed": 0}}
    write_tensors(path, {}, {**bound, "base_id": "another"})
    with pytest.raises(RecastError, match="belongs to base another"):
        load_task(folder, vit_base)
    write_tensors(path, {}, {**bound, "base_id": vit_base.base_id})
    with pytest.raises(RecastError, match=r"not the adapter that task\.yaml names"):
        load_task(folder, vit_base)
    path.write_bytes(content)
    assert load_task(folder, vit_base).adapter.tensors.keys() == read_tensors(path).keys()


def test_importance_is_the_squared_gradient_summed_over_batches(vit_base, data):
    """Against one loss after another with autograd's own backward, images taken in the order that the seed draws."""
    from recast_cli.engine.architecture.modules import features
    from recast_cli.engine.images.decode import decode
    from recast_cli.engine.images.splits import split_folder
    from recast_cli.engine.images.transforms import normalise

    config = vit_base.known_architecture().preprocessing
    images = decode(data, split_folder(data, 0, False).train, config, "skip", None, cache_size=0)
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(3, 32, generator=generator), torch.zeros(3))
    name = "blocks.3.mlp.fc2"
    found = squared_gradients(merge(vit_base), [name], images, head, config, seed=4)
    model, total = merge(vit_base), 0
    weight = model.get_parameter(f"{name}.weight").requires_grad_()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(4))
    for start in range(0, len(images), 32):
        rows = order[start : start + 32]
        logits = F.linear(features(model, normalise(images.pixels[rows], config)), *head)
        weight.grad = None
        F.cross_entropy(logits, images.labels[rows]).backward()
        total = total + weight.grad.clone() ** 2
    torch.testing.assert_close(found[name], total)
    assert found[name].max() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapter": "lora"}, "adapter lora is unknown"),
        ({"rank": 3}, "rank belongs to an adapter"),
        ({"adapter_lr": 0.1}, "adapter_lr belongs to an adapter"),
        ({"adapter": "melo", "density": 0.1}, "adapter melo has no density"),
        ({"adapter": "piggyback", "rank": 2}, "adapter piggyback has no rank"),
        ({"adapter": "rosa", "density": 1.5}, "density 1.5 is above 1"),
        ({"adapter": "rosa", "density": 0}, "density 0 is not a positive number"),
        ({"adapter": "melo", "rank": -1}, "rank -1 is not a positive number"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(RecastError, match=message):
        AdaptOptions(**given)
