"""`recast inspect BASE --plot report.html`: one page that holds the numbers and loads nothing."""

import re
from dataclasses import replace

import pytest
import yaml
from fixtures.cli_helpers import recast, recast_json
from fixtures.pages import Page, texts

from recast_cli.engine.base.file import load_base, save_base

pytestmark = pytest.mark.slow

pytest_plugins = ["fixtures.cli"]


def report(*options):
    result = recast("inspect", "base.safetensors", "--plot", "report.html", *options)
    assert result.exit_code == 0, result.output
    with open("report.html", encoding="utf-8") as file:
        return file.read(), result


def plain(text):
    """What a reader sees, without plots."""
    return " ".join(re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", text, flags=re.DOTALL).split())


@pytest.mark.usefixtures("ready")
def test_the_page_loads_nothing():
    page = Page(report()[0])
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert "://" not in (value or "") or name.startswith("xmlns")
            assert name not in ("href", "xlink:href", "src") or value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\((?!#)", report()[0])


@pytest.mark.usefixtures("ready")
def test_it_holds_what_inspect_measures():
    text, _ = report()
    seen, value = plain(text), recast_json("inspect", "base.safetensors")
    for each in (value["base_id"], f"{value['parameters']:,}", "24 degrees of freedom", value["source"], "exact"):
        assert each in seen
    cells = Page(text).cells
    assert cells[cells.index("blocks.*.attn.qkv") :][:6] == ["blocks.*.attn.qkv", "96 × 32", "12", "6", "2", "48"]
    assert all(bank["name"] in cells for bank in value["banks"])
    assert any("Entropy of singular values" in each for each in texts(text))


@pytest.mark.usefixtures("ready")
def test_the_tasks_of_the_folder_are_there_with_their_coefficients():
    text, _ = report()
    cells = Page(text).cells
    for name in ("colours", "shades"):
        value = recast_json("inspect", name)
        place = cells.index(name)
        assert cells[place + 1 : place + 3] == [str(len(value["classes"])), "32 px"]
        assert f"{100 * value['metrics']['test_top1']:.1f} %" in cells[place : place + 8]
    tasks = {name: recast_json("inspect", name) for name in ("colours", "shades")}
    for bank in range(6):
        for place in range(2):
            module = tasks["colours"]["banks"][bank]["modules"][place]["module"]
            row = cells[len(cells) - cells[::-1].index(module) :][:3]
            moved = [tasks[name]["banks"][bank]["modules"][place] for name in ("colours", "shades")]
            sets = [moved[0]["base"], moved[0]["coefficients"], moved[1]["coefficients"]]
            assert row == [" ".join(f"{(a + b) / 2:+.3f}" for a, b in zip(*each, strict=True)) for each in sets]


def test_tasks_of_other_bases_and_none_at_all(ready):
    record = ready / "tasks" / "shades" / "task.yaml"
    values = yaml.safe_load(record.read_text())
    record.write_text(yaml.safe_dump({**values, "base_id": "0" * 32}))
    assert "shades" not in plain(report()[0])
    (ready / "tasks" / "colours" / "head.safetensors").unlink()
    text, result = report()
    assert "No task in this folder belongs to this base" in plain(text)
    assert result.stderr.startswith("warning: left out the task colours:")


def test_what_verify_found_travels_with_the_base(ready, vit_folder, data):
    assert "On images it was not compared" in plain(report()[0])
    before = load_base("base.safetensors").base_id
    value = recast_json("mimic", vit_folder, "-o", "base.safetensors", "--layout", "paper-attention", "--verify", data)
    assert recast_json("inspect", "base.safetensors")["verified"] == value["verify"]
    assert value["base_id"] == before
    assert value["bytes"] == (ready / "base.safetensors").stat().st_size
    text = plain(report()[0])
    assert "100.0 % of 36 images alike" in text
    assert "On 100.0 % of 36 images base and source give the same class." in text


def test_names_cannot_become_markup_and_equal_bases_give_equal_pages(ready):
    base = load_base("base.safetensors")
    save_base(replace(base, source="<script>alert(1)</script>"), ready / "base.safetensors")
    first, _ = report()
    assert "<script" not in first
    assert "&lt;script&gt;" in first
    assert report()[0] == first


def test_a_lossy_base_says_what_it_lost(ready, vit_folder):
    recast("mimic", vit_folder, "-o", "base.safetensors", "--templates", 1)
    text, worst = plain(report()[0]), max(e["relative_error"] for e in load_base("base.safetensors").errors.values())
    assert f"{worst:.3g} relative to their norm" in text
    assert "largest error" in text


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(("option", "words"), [(("--bits", 4), "bits a weight"), (("--bits", 16), "float16")])
def test_how_a_base_is_stored(option, words, vit_folder):
    assert "templates in float32" in plain(report()[0])
    value = recast_json("mimic", vit_folder, *option, "-o", "base.safetensors")
    text = plain(report()[0])
    assert words in text
    assert "templates in float32" not in text
    if option[1] < 16:
        assert f"{value['compression']['bits']:.2f} bits a weight" in text
