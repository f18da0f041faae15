"""Errors of the engine: they speak of parameters, can be told apart, and survive the way to another process."""

import ast
import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
from helpers import draw_images
from safetensors.torch import load_file, save_file

import recast_cli
from recast_cli import DamagedFile, MissingFile, OptionError, RecastError, UnknownArchitecture
from recast_cli.engine import errors
from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.base.file import load_base, save_base
from recast_cli.engine.compare.artifacts import CannotRun, applying
from recast_cli.engine.errors import option
from recast_cli.engine.export.export import export
from recast_cli.engine.images.unlabelled import list_images
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.measure.verify import check_verifiable
from recast_cli.engine.mimic.compress.compress import compress
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.mimic.heal.heal import check_healable
from recast_cli.engine.mimic.options import MimicOptions
from recast_cli.engine.runtime.device import choose_device
from recast_cli.engine.source.open import open_source
from recast_cli.engine.task.options import AdaptOptions
from recast_cli.engine.task.task import load_task

ENGINE = Path(errors.__file__).parent
FLAG = re.compile(r"(?<![\w-])--([a-z]|$)")  # also where the rest of a flag is put in
MEANT = {
    "compare/figure.py": ["--"],  # a dashed line
    "runtime/device.py": ["--nproc-per-node"],  # torchrun's
    "report/base_page.py": ["mimic --verify", "mimic … --verify DIR", "adapt --task NAME"],  # commands for a reader
}
"""File -> the flags that stand there for the command line itself."""


def loud(name, value):
    return f"<{name}|{value}>"


def test_parameters_are_written_as_a_call_has_them():
    error = OptionError(
        "image_size", "0 is not\n a number", f"Leave out  {option('lr')}, or give {option('data', 'DIR')}."
    )
    assert str(error) == "image_size 0 is not a number. Leave out lr, or give data=DIR."
    assert (error.option, error.what) == ("image_size", "image_size 0 is not a number")
    assert error.hint == "Leave out lr, or give data=DIR."
    assert error.told(loud) == "<image_size|None> 0 is not a number. Leave out <lr|None>, or give <data|DIR>."
    assert str(RecastError("only this")) == "only this"


def test_words_and_values_are_no_parameters():
    for text in ("the image_size of `lr` in {data} and <data>", "a --lr=3 file"):
        error = OptionError("lr", text)
        assert str(error) == f"lr {text}"
        assert error.told(loud) == f"<lr|None> {text}"


def test_a_parameter_has_the_name_that_its_caller_knows():
    error = OptionError("lr", "0 is wrong", f"Lower {option('lr')}, or give {option('data', 'DIR')}.").renamed(
        "lr", "rate"
    )
    assert str(error) == "rate 0 is wrong. Lower rate, or give data=DIR."
    assert error.told(loud) == "<rate|None> 0 is wrong. Lower <rate|None>, or give <data|DIR>."
    assert error.option == "rate"


def test_a_place_goes_before_the_text():
    error = OptionError("lr", "0 is wrong", f"Lower {option('lr')}.")
    assert error.at("file: tasks.x") is error
    assert str(error) == "file: tasks.x: lr 0 is wrong. Lower lr."
    assert error.what == "file: tasks.x: lr 0 is wrong"
    assert error.told(loud) == "file: tasks.x: <lr|None> 0 is wrong. Lower <lr|None>."


@pytest.mark.parametrize("travel", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize(
    "error",
    [
        RecastError("what", "Hint."),
        OptionError("lr", f"or {option('rank')} is wrong", "Lower it."),
        UnknownArchitecture("x.pth", "Give it.", "there is none"),
        DamagedFile("x is damaged").at("here"),
    ],
)
def test_an_error_is_the_same_in_another_process(error, travel):
    found = travel(error)
    assert type(found) is type(error)
    assert (str(found), found.told(loud), vars(found)) == (str(error), error.told(loud), vars(error))


def test_all_kinds_are_public_and_say_when_they_are_raised():
    kinds = [each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__]
    assert {DamagedFile, MissingFile, OptionError, RecastError, UnknownArchitecture} == {*kinds}
    for kind in kinds:
        assert issubclass(kind, RecastError)
        assert getattr(recast_cli, kind.__name__) is kind
        assert kind.__doc__


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("recipe", lambda: AdaptOptions(recipe="quick")),
        ("batch_size", lambda: AdaptOptions(batch_size="most")),
        ("adapter", lambda: AdaptOptions(adapter="melo", density=0.1)),
        ("rank", lambda: AdaptOptions(rank=2)),
        ("split_seed", lambda: AdaptOptions(split_seed=-1)),
        ("device", lambda: choose_device("gpu")),
        ("patterns", lambda: plan_layout({"a": (4, 4)}, patterns=["b"])),
        ("modules", lambda: MimicOptions(modules=("b",)).plan({"a": (4, 4)})),
        ("group_size", lambda: MimicOptions(bits=4, group_size=1)),
        ("architecture", lambda: open_source("resnet18", architecture="resnet18")),
        ("weights", lambda: open_source("hf-hub:timm/resnet18", weights="x.pth")),
    ],
)
def test_a_wrong_value_is_an_option_error(name, call):
    with pytest.raises(OptionError, match=rf"^{name}\b") as caught:
        call()
    assert caught.value.option == name
    assert "--" not in str(caught.value)


def test_what_is_not_there_is_a_missing_file(vit_base, tmp_path):
    draw_images(tmp_path / "images" / "test", ("a", "b"), 1)
    for call in (
        lambda: load_base(tmp_path / "none.safetensors"),
        lambda: load_task(tmp_path / "tasks" / "none"),
        lambda: open_source(str(tmp_path / "none.pth")),
        lambda: open_source("./none"),
        lambda: list_images(tmp_path / "none"),
        lambda: adapt(vit_base, tmp_path / "none", "t", tmp_path / "tasks" / "t", device="cpu"),
        lambda: adapt(vit_base, tmp_path / "images", "t", tmp_path / "tasks" / "t", device="cpu"),
        lambda: save_base(vit_base, tmp_path / "none" / "base.safetensors"),
    ):
        with pytest.raises(MissingFile, match=r"does not exist|no task|no train folder"):
            call()


def test_what_is_not_whole_is_a_damaged_file(vit_base, tmp_path):
    path = tmp_path / "base.safetensors"
    save_base(vit_base, path)
    whole = path.read_bytes()
    for content in (whole[:-10], whole[:100], whole.replace(b'\\"base_id\\"', b'\\"base_if\\"')):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=r"base\.safetensors"):
            load_base(path)
    (tmp_path / "weights.pth").write_text("no weights")
    with pytest.raises(DamagedFile, match="not a weight file"):
        open_source(str(tmp_path / "weights.pth"))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "task.yaml").write_text("classes: [")
    with pytest.raises(DamagedFile, match=r"not valid YAML. Adapt the task again with restart=True\."):
        load_task(tmp_path / "task")


def test_tensors_alone_have_an_unknown_architecture(vit_folder, tmp_path):
    save_file(load_file(vit_folder / "model.safetensors"), tmp_path / "weights.safetensors")
    source = open_source("weights.safetensors")
    layout = plan_layout(source.modules)
    base = mimic(source, layout)
    for call, hint in (
        (source.network, "architecture"),
        (base.known_architecture, "architecture=NAME"),
        (lambda: export(base, tmp_path / "out", "timm"), "format=safetensors"),
        (lambda: check_verifiable(source, tmp_path), "verify"),
        (lambda: check_healable(source, layout), "heal"),
        (lambda: compress(source, layout, bits=4, calibrate=tmp_path), "calibrate"),
    ):
        with pytest.raises(UnknownArchitecture, match=rf"^weights\.safetensors has no known architecture, .*{hint}"):
            call()


def test_in_a_comparison_options_are_called_as_in_its_file():
    with pytest.raises(CannotRun, match=r"^modules 'x' matches no module\. Roles here: head\.$"), applying():
        MimicOptions(modules=("x",)).plan({"head": (2, 3)})
    with pytest.raises(CannotRun, match=r"^image_size 1 is too small\. Leave out image_size\.$"), applying():
        raise OptionError("image_size", "1 is too small", f"Leave out {option('image_size')}.")


def texts(file):
    """The strings of a module, documentation included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [each.value for each in ast.walk(tree) if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def test_the_engine_knows_no_flags():
    found = []
    for file in sorted(ENGINE.rglob("*.py")):
        name = file.relative_to(ENGINE).as_posix()
        for text in texts(file):
            text = re.sub(r"var\(--\w+\)|--\w+:", "", text)  # of style sheets
            for words in MEANT.get(name, ()):
                text = text.replace(words, "")
            found += [(name, text)] if FLAG.search(text) else []
    assert found == []
