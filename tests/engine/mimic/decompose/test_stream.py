"""Bases written while they are made: the same file as by way of memory, from any container, with little memory."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from helpers import VIT, network, save_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model

from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.decompose.solver_options import GradientOptions
from recast_cli.engine.source.open import open_source
from recast_cli.engine.source.source import from_model
from recast_cli.engine.storage.tensors import StoredTensors

pytestmark = pytest.mark.slow


def shard(tensors, folder, count=3):
    """`tensors` in shards with an index, as large checkpoints come; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: f"model-{number % count:05}.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return index


def sha(tensor):
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


def brute_digest(tensors, extra, banks=()):
    """The digest as docs/reference/base-file.md has it."""
    rows = [extra]
    for name in sorted(tensors):
        tensor = tensors[name]
        parts = [sha(template) for template in tensor] if name in banks else [sha(tensor)]
        rows.append([name, NAMES[tensor.dtype], list(tensor.shape), parts])
    content = json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


WAYS = {
    "exact": ({}, {}),
    "lossy": ({"groups": 1, "templates": 2}, {}),
    "bfloat16": ({}, {"dtype": "bfloat16"}),
    "gradient": ({}, {"options": GradientOptions(steps=2)}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_both_roads_write_the_same_file(kind, way, request, tmp_path):
    source = request.getfixturevalue(f"{kind}_source")
    plan, options = WAYS[way]
    layout = plan_layout(source.modules, **plan)
    streamed = mimic(source, layout, path=tmp_path / "streamed", **options)
    assert streamed.path == tmp_path / "streamed"
    saved = save_base(mimic(source, layout, **options), tmp_path / "saved")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "saved").read_bytes()
    assert streamed.tensors.keys() == saved.tensors.keys()
    assert (streamed.base_id, streamed.errors, streamed.solver) == (saved.base_id, saved.errors, saved.solver)
    loaded = load_base(tmp_path / "streamed")
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in streamed.tensors.items())
    assert replace(streamed, tensors={}) == replace(loaded, tensors={})


@pytest.mark.parametrize("way", WAYS)
def test_digests_are_what_the_documents_say(way, vit_source, vit_folder, tmp_path):
    plan, options = WAYS[way]
    mimic(vit_source, plan_layout(vit_source.modules, **plan), path=tmp_path / "base", **options)
    tensors = load_file(tmp_path / "base")
    with safe_open(tmp_path / "base", "pt") as file:
        metadata = json.loads(file.metadata()["recast"])
    banks = {f"banks.{bank['name']}.templates" for bank in metadata["layout"]["banks"]}
    assert metadata["base_id"] == brute_digest(tensors, metadata["layout"], banks)[:32]
    expected = brute_digest(load_file(vit_folder / "model.safetensors"), None)
    assert metadata["source_digest"] == f"sha256:{expected}" == vit_source.digest


def test_minus_zero_in_the_source_is_kept(tmp_path):
    """The hash of a template is taken from the weight only where they have the same bits."""
    tensors = {f"blocks.{n}.fc.weight": torch.full((2, 3), -0.0) for n in range(2)}
    save_file(tensors, tmp_path / "zero.safetensors")
    source = open_source("zero.safetensors")
    base = mimic(source, plan_layout(source.modules, templates=1), path=tmp_path / "base")
    found = load_file(tmp_path / "base")
    assert base.base_id == brute_digest(found, base.layout.to_dict(), {"banks.blocks.0-1.fc.templates"})[:32]


@pytest.mark.parametrize("architecture", [None, VIT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_container_gives_the_same_base(dtype, architecture, tmp_path):
    model = timm.create_model("test_vit", num_classes=7) if architecture else network()
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    index = shard(state, tmp_path / "shards")
    name = "test_vit" if architecture else None
    bases = []
    for file in ("w.safetensors", "w.pth", "old.pth", str(index)):
        source = open_source(file, name)
        bases.append(mimic(source, plan_layout(source.modules), path=tmp_path / "base"))
        assert all(
            torch.equal(bases[-1].state()[key], value.to(bases[-1].state()[key].dtype)) for key, value in state.items()
        )
    assert len({base.base_id for base in bases}) == 1
    assert len({base.source_digest for base in bases}) == 1
    if architecture:
        source = open_source(name, weights=index)
        assert mimic(source, plan_layout(source.modules)).base_id == bases[0].base_id


def test_a_folder_of_shards_is_the_folder_with_one_file(vit_folder, vit_source, tmp_path):
    folder = save_folder(tmp_path / vit_folder.name)
    shard(load_file(folder / "model.safetensors"), folder)
    (folder / "model.safetensors").unlink()
    source = open_source(str(folder))
    assert (source.name, source.modules, source.architecture) == (
        vit_source.name,
        vit_source.modules,
        vit_source.architecture,
    )
    assert source.digest == vit_source.digest


def test_a_file_is_read_when_a_tensor_is_asked_for(vit_folder, vit_source):
    with safe_open(vit_folder / "model.safetensors", "pt") as file:
        assert isinstance(vit_source.tensors, StoredTensors)
        assert set(vit_source.tensors) == set(file.keys())
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(vit_source.tensors[name], file.get_tensor(name))
    assert vit_source.tensors["norm.bias"] is not vit_source.tensors["norm.bias"]


def test_an_error_on_the_way_leaves_the_old_base(tmp_path):
    state = network().state_dict()
    state["blocks.11.attn.qkv.weight"][0, 0] = float("inf")  # in the last bank
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "base").write_text("old")
    source = open_source("w.safetensors")
    layout = plan_layout(source.modules, patterns=["blocks.*.attn.qkv"])
    with pytest.raises(RecastError, match="NaN or infinite"):
        mimic(source, layout, path=tmp_path / "base")
    assert (tmp_path / "base").read_text() == "old"
    assert {file.name for file in tmp_path.iterdir()} == {"base", "w.safetensors"}


def test_tied_tensors_of_a_network_are_stored_once(tmp_path):
    model = network("coat_tiny", {})
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "coat.safetensors")
    source = open_source("coat.safetensors", "coat_tiny")
    assert source.aliases == from_model("coat", model, {}).aliases != {}
    assert not source.aliases.keys() & source.tensors.keys()
    base = mimic(source, plan_layout(source.modules), path=tmp_path / "base")
    found = base.state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def without_ties(model, folder, keep):
    """The weights of a network as files that hold each tensor under one name, and a timm folder of them."""
    names = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    state = model.state_dict()
    once = {keep(tied): state[keep(tied)].clone() for tied in names.values()}
    assert once.keys() < state.keys()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "coat_tiny"}))
    save_file(once, folder / "model.safetensors")
    torch.save(once, folder / "coat.pth")
    return state


@pytest.mark.parametrize("keep", [min, max], ids=["one name", "the other"])
@pytest.mark.parametrize("file", ["model.safetensors", "coat.pth", ""])
def test_a_file_may_have_one_name_of_tied_tensors(tmp_path, file, keep):
    model = network("coat_tiny", {})
    state = without_ties(model, tmp_path / "coat", keep)
    source = open_source(str(tmp_path / "coat" / file), "coat_tiny" if file else None)
    assert source.aliases == from_model("coat", model, {}).aliases
    found = mimic(source, plan_layout(source.modules)).state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_what_safetensors_own_save_model_wrote(tmp_path):
    model = network("coat_tiny", {})
    save_model(model, str(tmp_path / "coat.safetensors"))
    assert open_source("coat.safetensors", "coat_tiny").aliases == from_model("coat", model, {}).aliases


def test_a_tied_tensor_without_any_of_its_names_is_missed(tmp_path):
    model = network("coat_tiny", {})
    tied = ["cpe1.proj.weight", "serial_blocks1.0.cpe.proj.weight", "serial_blocks1.1.cpe.proj.weight"]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, tmp_path / "coat.safetensors")
    with pytest.raises(RecastError, match=r"lacks cpe1\.proj\.weight and 2 more"):
        open_source("coat.safetensors", "coat_tiny")


def test_other_key_names_go_through_timms_filter(tmp_path):
    state = network("test_vit", {}).state_dict()
    save_file({f"visual.trunk.{name}": tensor for name, tensor in state.items()}, tmp_path / "clip.safetensors")
    found = open_source("clip.safetensors", "test_vit").tensors
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_network_that_cannot_be_built_without_values(vit_folder, vit_source, monkeypatch):
    create = timm.create_model

    def needs_values(*arguments, **options):
        torch.linspace(0, 1, 2)[0].item()
        return create(*arguments, **options)

    monkeypatch.setattr("timm.create_model", needs_values)
    source = open_source(str(vit_folder))
    assert (source.modules, source.architecture) == (vit_source.modules, vit_source.architecture)
    assert source.digest == vit_source.digest


FAMILIES = [
    *("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18", "convnext_atto", "mobilenetv2_050"),
    *("efficientnet_b0", "beit_base_patch16_224", "maxvit_pico_rw_256", "vit_small_patch14_reg4_dinov2", "coat_tiny"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_shapes_need_no_values(name):
    from recast_cli.engine.architecture.build import skeleton
    from recast_cli.engine.architecture.modules import find_modules, ties
    from recast_cli.engine.architecture.timm_config import describe

    real, bare = timm.create_model(name), skeleton(name)
    assert {tensor.device.type for tensor in bare.state_dict().values()} == {"meta"}
    assert [(key, value.shape, value.dtype) for key, value in real.state_dict().items()] == [
        (key, value.shape, value.dtype) for key, value in bare.state_dict().items()
    ]
    assert (find_modules(bare), ties(bare), describe(bare, {})) == (find_modules(real), ties(real), describe(real, {}))


MEASURE = """
import sys
from pathlib import Path
from recast_cli.engine.storage import background
from recast_cli.engine.base.file import load_base
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.export.restore import write_source
from recast_cli.engine.source.open import open_source

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

background.LARGE = 2**25
before = peak()
source = open_source(sys.argv[1])
mimic(source, plan_layout(source.modules, patterns=["*.fc"]), path=Path("base"))
made = peak()
write_source(load_base(Path("base")), Path("back"))
print(made - before, peak() - made)
"""


def peaks(file, folder):
    """Bytes that `mimic` of a file needs at most, and how many more the way back does, in a process of its own."""
    root = str(Path(__file__).parents[4])
    command = [sys.executable, "-c", MEASURE, str(file)]
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return [int(text) for text in result.stdout.split()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell peak memory")
def test_memory_is_that_of_a_bank(tmp_path):
    tensors = {f"blocks.{n}.fc.weight": torch.randn(1024, 1024) for n in range(24)}
    tensors |= {f"blocks.{n}.proj.weight": torch.randn(1024, 1024) for n in range(24)}
    size = sum(tensor.nbytes for tensor in tensors.values())  # 201 MB, in banks of 8.4 MB
    made, back = peaks(shard(tensors, tmp_path / "shards"), tmp_path)
    assert made < 0.4 * size
    assert back < 0.1 * size
    base = load_base(tmp_path / "base")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in base.state().items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell peak memory")
def test_of_large_tensors_one_is_in_memory(tmp_path):
    """As the tables of a language model: what is read next has the memory of what was written and hashed."""
    tensors = {f"blocks.{n}.fc.weight": torch.randn(64, 64) for n in range(2)}
    tensors |= {f"tables.{n}.weight": torch.randn(8192, 1024) for n in range(5)}
    largest = tensors["tables.0.weight"].nbytes  # 34 MB
    made, back = peaks(shard(tensors, tmp_path / "shards"), tmp_path)
    assert made < 1.5 * largest
    assert back < 0.25 * largest
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "back").items())


def test_a_base_that_is_written_anew_over_its_own_file_is_read_from_the_new_one(vit_source, tmp_path):
    """What `--verify` adds makes the header longer, so every tensor then stands elsewhere."""
    base = mimic(vit_source, plan_layout(vit_source.modules), path=tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in base.tensors.items()}
    verified = {"images": 1, "agreement": 1.0, "feature_cosine": dict.fromkeys(base.layout.modules, 1.0)}
    again = save_base(replace(base, verified=verified), tmp_path / "base")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in before.items())
    assert load_base(tmp_path / "base").verified == verified
