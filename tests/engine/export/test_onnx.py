"""ONNX files, run by onnxruntime on fresh images and compared with the merged network."""

import json
import sys

import pytest
import torch
from fixtures.export import expected, learned, logits, task_of
from helpers import CONV, CONV_ARGS, MEAN, STD, VIT, VIT_ARGS, random_images, save_folder

from recast_cli.engine.errors import RecastError
from recast_cli.engine.export import onnx
from recast_cli.engine.export.export import export
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model.attach import merge
from recast_cli.engine.source.open import open_source

pytestmark = pytest.mark.slow

NEEDED = ("onnx", "onnxruntime", "onnxscript")


@pytest.fixture
def _extra():
    for name in NEEDED:
        pytest.importorskip(name, reason="pip install 'recast-cli[onnx]' for this test")


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A base of each kind, shallow: an export takes a time for each layer."""
    kinds = {"vit": (VIT, {**VIT_ARGS, "depth": 2}), "conv": (CONV, CONV_ARGS)}
    found = {}
    for kind, (name, args) in kinds.items():
        source = open_source(str(save_folder(tmp_path_factory.mktemp("small") / kind, name, args)))
        found[kind] = mimic(source, plan_layout(source.modules))
    return found


def run(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def refuse(*_):
    raise RecastError("Not this one")


@pytest.mark.usefixtures("_extra")
@pytest.mark.parametrize(
    ("kind", "size", "adapter"),
    [("vit", 32, None), ("vit", 48, "melo"), ("vit", 32, "adaptformer"), ("conv", 48, None), ("conv", 32, "clr")],
)
def test_a_task_for_batches_of_any_size(kind, size, adapter, bases, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx, "of_trace", refuse)  # which would take over, were the graph for one size alone
    base = bases[kind]
    task = task_of(base, size=size, adapter=learned(base, adapter) if adapter else None)
    path = tmp_path / "colours.onnx"
    found = export(base, path, "onnx", task)
    for count in (1, 2, 5):
        images = random_images(count, size=size, seed=count)
        torch.testing.assert_close(run(path, images), expected(base, task, images), atol=1e-5, rtol=1e-5)
    assert 0 <= found.max_logit_difference < 1e-5
    assert found.files == [path, tmp_path / "colours.onnx.json"]
    assert sorted(tmp_path.iterdir()) == found.files


@pytest.mark.usefixtures("_extra")
def test_preparation_lies_beside_the_file_and_in_it(bases, tmp_path):
    import onnx

    base = bases["vit"]
    export(base, tmp_path / "colours.onnx", "onnx", task_of(base, size=48))
    about = json.loads((tmp_path / "colours.onnx.json").read_text(encoding="utf-8"))
    assert about == {
        "task": "colours",
        "base_id": base.base_id,
        "input": "images",
        "output": "logits",
        "input_size": [3, 48, 48],
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "classes": ["blue", "green", "red"],
    }
    model = onnx.load(tmp_path / "colours.onnx")
    assert {each.key: json.loads(each.value) for each in model.metadata_props if each.key == "recast"} == {
        "recast": about
    }
    onnx.checker.check_model(model)


@pytest.mark.usefixtures("_extra")
def test_the_sources_own_classifier(bases, tmp_path):
    base = bases["conv"]
    export(base, tmp_path / "source.onnx", "onnx")
    torch.testing.assert_close(run(tmp_path / "source.onnx", random_images(3)), logits(merge(base), random_images(3)))
    assert json.loads((tmp_path / "source.onnx.json").read_text(encoding="utf-8"))["classes"] is None


@pytest.mark.usefixtures("_extra")
def test_the_tracing_exporter_takes_over_where_the_other_cannot(bases, monkeypatch, tmp_path):
    def cannot(*arguments, **options):
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("torch.export.export", cannot)
    base = bases["vit"]
    task = task_of(base)
    export(base, tmp_path / "colours.onnx", "onnx", task)
    torch.testing.assert_close(run(tmp_path / "colours.onnx", random_images(3)), expected(base, task, random_images(3)))


class Unknown(torch.nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, images):
        return torch.special.bessel_j0(images)


@pytest.mark.usefixtures("_extra")
def test_an_operator_that_onnx_lacks_is_named_and_nothing_written(bases, monkeypatch, tmp_path):
    base = bases["conv"]
    monkeypatch.setattr("recast_cli.engine.export.merged.Classified.forward", lambda self, x: Unknown()(x).mean((2, 3)))
    with pytest.raises(RecastError, match=r"ONNX has nothing for a part of this network: .*bessel_j0"):
        export(base, tmp_path / "colours.onnx", "onnx", task_of(base))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_extra")
def test_a_file_that_gives_other_logits_is_not_kept(bases, monkeypatch, tmp_path):
    base = bases["conv"]
    monkeypatch.setattr("recast_cli.engine.export.merged.TOLERANCE", -1.0)
    with pytest.raises(RecastError, match=r"What onnxruntime runs of task colours differs .* in a logit"):
        export(base, tmp_path / "colours.onnx", "onnx", task_of(base))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_extra_is_named_before_any_work(name, bases, monkeypatch, tmp_path):
    for each in NEEDED:
        monkeypatch.setitem(sys.modules, each, None if each == name else sys)
    with pytest.raises(RecastError, match=rf"needs {name}. Run pip install 'recast-cli\[onnx\]'"):
        export(bases["conv"], tmp_path / "colours.onnx", "onnx")


def test_weights_beyond_what_a_file_takes_are_refused(bases, monkeypatch, tmp_path):
    monkeypatch.setattr("recast_cli.engine.export.onnx.LARGEST", 1000)
    monkeypatch.setattr("recast_cli.engine.export.onnx.NEEDED", ())
    with pytest.raises(RecastError, match="an ONNX file takes 2 GB"):
        export(bases["conv"], tmp_path / "colours.onnx", "onnx")


@pytest.mark.usefixtures("_extra")
def test_no_path_of_this_computer_is_in_the_file(bases, tmp_path):
    export(bases["vit"], tmp_path / "net.onnx", "onnx", task_of(bases["vit"]))
    content = (tmp_path / "net.onnx").read_bytes()
    assert str(tmp_path).encode() not in content
    assert torch.__file__.removesuffix("__init__.py").encode() not in content
    assert b"stack_trace" not in content
