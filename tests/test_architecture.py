"""The house stays as it is drawn: no circles, small rooms, short files, no torch where none is wanted.

Which room may import which is checked by `lint-imports`, with the contracts in pyproject.toml.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from recast_cli import PUBLIC

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "recast_cli").rglob("*.py")
}
"""Module -> its file."""
ROOMS = {name: path for name, path in FILES.items() if path.name == "__init__.py" and name.count(".")}
"""Package below recast_cli -> its __init__.py."""
MOST_FILES, MOST_LINES = 11, 300


def imports(tree):
    """Our modules that a module imports anywhere: at its top, in a function, or for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are spelt out"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in FILES else node.module


def graph(sources):
    """Module -> our modules that it imports, of module -> source."""
    return {name: {target for target in imports(ast.parse(text)) if target in FILES} for name, text in sources.items()}


def test_no_file_imports_itself_in_a_circle():
    edges = graph({name: path.read_text(encoding="utf-8") for name, path in FILES.items()})
    assert sum(map(len, edges.values())) > 500
    TopologicalSorter(edges).prepare()  # CycleError names the circle


def test_lazy_imports_and_those_for_type_checkers_count():
    source = "if TYPE_CHECKING:\n from recast_cli.engine import errors\ndef f():\n from recast_cli.version import it"
    assert graph({"new": source}) == {"new": {"recast_cli.engine.errors", "recast_cli.version"}}


def test_rooms_are_small_and_files_are_short():
    for name, path in ROOMS.items():
        files = [file.name for file in path.parent.glob("*.py") if file.name != "__init__.py"]
        assert len(files) <= MOST_FILES, f"{name}: {files}"
    tests = {str(path): path for path in (ROOT / "tests").rglob("*.py") if path.name != "candidates.py"}  # data
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in (FILES | tests).items()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("name", [name for name in ROOMS if name != "recast_cli.demo"])
def test_a_room_opens_with_one_sentence_and_imports_nothing(name):
    body = ast.parse(ROOMS[name].read_text(encoding="utf-8"))
    sentence = ast.get_docstring(body)
    assert len(body.body) == 1, "an import here takes torch along into every file of the room"
    assert sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_the_map_names_every_room():
    page = ROOT / "docs" / "explanation" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    for path in ROOMS.values():
        room = path.parent.relative_to(ROOT / "recast_cli")
        assert f"{room.name}/" in text, f"{page.name} does not name {room}"


@pytest.fixture
def tools():
    """What pyproject.toml says to each tool."""
    toml = pytest.importorskip("tomllib")  # since Python 3.11
    return toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def test_types_are_strict_for_all_that_is_public(tools):
    (strict,) = (each for each in tools["mypy"]["overrides"] if each.get("warn_return_any"))
    assert sorted(strict["module"]) == sorted(["recast_cli", *(f"recast_cli.engine.{name}" for name in PUBLIC)])


def test_no_torch_where_the_contract_says_none(tools):
    (contract,) = (each for each in tools["importlinter"]["contracts"] if each["id"] == "torch-free")
    names = contract["source_modules"]
    names += [module for module in FILES if any(module.startswith(f"{name}.") for name in names)]
    code = "import importlib, sys\nfor name in sys.argv[1].split(): importlib.import_module(name)\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, " ".join(names)], capture_output=True, text=True, check=True)
    loaded = {*result.stdout.split()}
    assert {*names} <= loaded
    assert not loaded & {*contract["forbidden_modules"]}
