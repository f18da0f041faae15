"""The documents say what the code does: commands, options, links, files, the public API, the README's commands."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import typer
from generate_docs import PAGES, REFERENCE, page
from safetensors import safe_open

import recast_cli
from recast_cli.cli.main import app
from recast_cli.demo import MODEL_FOLDER
from recast_cli.demo.draw import draw_task

ROOT = Path(__file__).parent.parent
PAGES_OF_ALL = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
HAND_WRITTEN = [path for path in PAGES_OF_ALL if path.parent != REFERENCE or path.name not in PAGES]
COMMANDS = typer.main.get_command(app).commands
EVIDENCE = ROOT / "docs" / "evidence"  # notebooks: what was run then, in the words of then


def label(path):
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("path", PAGES_OF_ALL, ids=label)


def without_code(text):
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_blocks(text, *languages):
    """The blocks of code of these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """What a link may name after `#`: the headings as GitHub calls them, equal ones numbered."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return found


# Links, words, shape


@every_page
def test_every_link_leads_to_a_file_and_a_heading(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file) if file else path
        assert place.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_headings_are_called_as_github_calls_them():
    text = "# A `recast mimic`: 4x, n\\*K\n## [A link](x.md)_b\n```sh\n# no heading\n```\n## Twice\n## Twice\n"
    assert anchors(text) == ["a-recast-mimic-4x-nk", "a-link_b", "twice", "twice-1"]


@every_page
def test_lines_are_wrapped(path):
    if path.name == "table.md":  # made by `recast compare`
        return
    for number, line in enumerate(without_code(path.read_text(encoding="utf-8")).splitlines(), 1):
        free = line.startswith(("|", "    ", "![")) or "](" in line or ("`" in line and " " not in line.strip())
        assert len(line) <= 120 or free, f"line {number} after its code is left out: {line}"


@every_page
def test_what_is_classified_is_an_image(path):
    """One word for one thing. Names that files and keys have are in code."""
    text = re.sub(r"`[^`]*\bpictures\b[^`]*`", "", path.read_text(encoding="utf-8"))
    assert not re.findall(r".*\bpictures?\b.*", text, flags=re.IGNORECASE)


def test_short_pages_are_short():
    for name, most in (("README.md", 130), ("docs/index.md", 30), ("docs/evidence/summary.md", 80)):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most, name


def test_every_page_is_found_from_the_index():
    seen, todo = set(), [ROOT / "docs" / "index.md"]
    while todo:
        path = todo.pop().resolve()
        if path in seen or path.suffix != ".md" or not path.exists():
            continue
        seen.add(path)
        todo += [path.parent / link for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))]
    pages = {path.resolve() for path in (ROOT / "docs").rglob("*.md") if ROOT / "docs" / "compare" not in path.parents}
    assert not pages - seen


# Commands


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name):
    assert (REFERENCE / name).read_text(encoding="utf-8") == page(name), "run `python tests/generate_docs.py`"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_names_every_option_of_every_command(name):
    text = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    section = text.split(f"## `recast {name}`")[1].split("\n## ")[0]
    for parameter in COMMANDS[name].params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert option in section, f"{option} of {name} is not in it"


@every_page
def test_commands_in_the_documents_have_the_options_that_they_are_given(path):
    if EVIDENCE in path.parents:
        return
    blocks = code_blocks(path.read_text(encoding="utf-8"), "sh", "console", "yaml")
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines:
        found = re.match(r"(?:\$ |.*?- run: )?(?:torchrun .* -m recast_cli|recast) (\w+)(.*)", line)
        if not found or (found[1] in ("demo",) and "&&" in line):
            continue
        assert found[1] in COMMANDS, line
        known = {option for each in COMMANDS[found[1]].params for option in (*each.opts, *each.secondary_opts)}
        for word in shlex.split(found[2], comments=True):
            if word in ("|", ">", "2>"):
                break
            assert not re.match(r"--?[a-z]", word) or word.split("=")[0] in known, f"{word} in: {line}"


def test_the_readme_has_the_two_commands_that_ci_and_newcomers_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for marker, last in (("demo", "recast demo"), ("test", "pytest -q -n 2 --dist loadfile")):
        block = re.search(rf"<!-- {marker} -->\n```sh\n(.+)\n```", text)
        assert block is not None
        assert block[1].startswith("python3 -m venv .venv && .venv/bin/pip install")
        assert block[1].endswith(last)


# The library


def test_every_public_name_can_be_imported():
    for name in recast_cli.__all__:
        assert getattr(recast_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        recast_cli.nothing  # noqa: B018


@pytest.mark.parametrize("path", HAND_WRITTEN, ids=label)
def test_examples_in_python_are_valid_and_use_public_names_alone(path):
    for block in code_blocks(path.read_text(encoding="utf-8"), "python"):
        compile(block, str(path), "exec")
        for name in re.findall(r"\brecast\.(\w+)", block):
            assert name in recast_cli.__all__, f"{name} is not public"


@pytest.mark.slow
def test_the_examples_in_python_run_one_after_the_other():
    """In a demo's folder with fewer images, where one task is learned already."""
    shutil.copytree(MODEL_FOLDER, "vit")
    for task in ("inks", "textures"):
        draw_task(task, Path("data", task), per_class=12)
    shutil.copy("data/textures/scales/000.png", "data/textures/scales/079.png")
    source = recast_cli.open_source("vit")
    base = recast_cli.mimic(source, recast_cli.plan_layout(source.modules))
    recast_cli.adapt(base, Path("data/inks"), "inks", Path("tasks/inks"), recast_cli.AdaptOptions(epochs=1))
    names: dict[str, object] = {}
    for block in code_blocks((ROOT / "docs/how-to/from-python.md").read_text(encoding="utf-8"), "python"):
        exec(block.replace("epochs=5", "epochs=1"), names)
    assert Path("base.safetensors").stat().st_size > 3 * Path("small.safetensors").stat().st_size
    assert recast_cli.load_task(Path("tasks/textures"), base).vector.equal(names["task"].vector)
    assert sum(each.numel() for each in names["coefficients"]) == 48
    assert names["logits"].shape == (1, 8)
    assert Path("textures-timm/model.safetensors").exists()


@pytest.mark.parametrize("path", HAND_WRITTEN, ids=label)
def test_files_of_the_engine_are_where_the_documents_say(path):
    if EVIDENCE in path.parents:
        return
    for name in re.findall(
        r"`(?:recast_cli/)?((?:engine|cli|demo)/[\w/]+(?:\.py|/))`", path.read_text(encoding="utf-8")
    ):
        assert (ROOT / "recast_cli" / name).exists(), name


def test_documents_that_the_code_names_exist():
    for path in [*(ROOT / "recast_cli").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for name in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"size": 140_000}, {"bits": 4, "group": 48}], ids=["size", "bits"])
def test_compressed_bases_are_read_by_what_the_page_about_them_says(asked, vit_source, tmp_path):
    recipe = code_blocks((REFERENCE / "base-file.md").read_text(encoding="utf-8"), "python")[0]
    layout = recast_cli.plan_layout(vit_source.modules)
    base = recast_cli.compress(vit_source, layout, path=tmp_path / "b.safetensors", **asked)
    with safe_open(tmp_path / "b.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["recast"])
    names = [name for name in metadata["codes"] if f"{name}.codes" in tensors]
    assert names
    for name in names:
        read = {"math": math, "np": np, "zlib": zlib, "metadata": metadata, "tensors": tensors, "name": name}
        exec(recipe, read)
        np.testing.assert_array_equal(read["values"].astype("float32"), base.value(name).numpy())


def test_every_file_of_the_engine_is_on_the_map():
    places = (ROOT / "docs" / "explanation" / "architecture.md", ROOT / "docs" / "architecture.md")
    text = next(path for path in places if path.exists()).read_text(encoding="utf-8")
    for file in (ROOT / "recast_cli" / "engine").glob("*.py"):
        assert file.name == "__init__.py" or file.name in text, file.name


# Images


def test_images_are_small_and_load_nothing_from_elsewhere():
    images = sorted((ROOT / "docs" / "images").glob("*.[ps][nv]g"))
    assert images
    for path in images:
        assert path.stat().st_size < 300_000, path.name
        if path.suffix == ".svg":
            assert not re.findall(r"(?:href|src|url\()\W*https?:", path.read_text(encoding="utf-8"))


def test_a_session_is_drawn_with_what_its_commands_print(tmp_path):
    command = f"{shlex.quote(sys.executable)} -c \"print('result'); import sys; print('note', file=sys.stderr)\""
    script = ROOT / "docs" / "images" / "record.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "s.svg"), command, "exit 3"], check=True)
    text = (tmp_path / "s.svg").read_text(encoding="utf-8")
    assert text.index(">note") < text.index(">result") < text.index(">exit&#160;3")
