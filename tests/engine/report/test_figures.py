"""Plots of bases and tasks: the three formats, equal bytes, undefined values, and nothing half-written."""

import math
import re
import warnings
from xml.etree import ElementTree

import matplotlib
import pytest
import torch
from fixtures.pages import Page, texts
from matplotlib.figure import Figure
from PIL import Image

from recast_cli.engine.base.base import Base
from recast_cli.engine.errors import RecastError
from recast_cli.engine.layout.layout import Bank, Layout
from recast_cli.engine.measure.diagnose import BankDiagnosis, ModuleChange
from recast_cli.engine.report.figures import plot_base, plot_tasks
from recast_cli.engine.report.heat_maps import short, short_names


@pytest.fixture(autouse=True)
def _no_warnings():
    """A warning of matplotlib's would end up on the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def fake(groups=2, layers=2, roles=("attn.qkv", "mlp.fc1"), undefined=False, error=0.0, source="tiny.safetensors"):
    """A base without tensors, and a diagnosis with made-up numbers; `undefined`: every number that may be is None."""
    banks, found = [], []
    for group in range(groups):
        for place, role in enumerate(roles):
            blocks = range(group * layers, (group + 1) * layers)
            modules = tuple(f"blocks.{block}.{role}" for block in blocks)
            bank = Bank(f"blocks.{blocks[0]}-{blocks[-1]}.{role}", f"blocks.*.{role}", group + 1, modules, (8, 4), 2)
            similarity = [[math.cos(i - j + group) for j in range(layers)] for i in range(layers)]
            if undefined:
                similarity = [[None] * layers for _ in range(layers)]
            banks.append(bank)
            found.append(
                BankDiagnosis(
                    name=bank.name,
                    group=bank.group,
                    modules=modules,
                    frobenius=None if undefined else 3.25 + group + place,
                    entropy=None if undefined else 1.5 - group / 10,
                    max_relative_error=error * group,
                    coefficient_similarity=similarity if layers > 1 else None,
                )
            )
    layout = Layout("custom", 1, tuple(banks))
    base = Base(layout=layout, tensors={}, base_id="0" * 32, architecture=None, source=source, solver={"name": "exact"})
    return base, found


def changes(scale, modules=4):
    return [ModuleChange(f"blocks.{i}.attn.qkv", [[0.0]], [[0.0]], scale * (i + 1)) for i in range(modules)]


TASKS = [("flowers", changes(0.1)), ("_cars $x$ <b>", changes(0.25))]
SIMILARITY = [[1.0, None], [None, 1.0]]


def draw_base(path):
    plot_base(*fake(), path)


def draw_tasks(path):
    plot_tasks(TASKS, SIMILARITY, path)


both = pytest.mark.parametrize("draw", [draw_base, draw_tasks])
formats = pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])


@pytest.mark.slow
@both
def test_png_is_a_plot_of_reasonable_size(draw, tmp_path):
    draw(tmp_path / "a.PNG")
    with Image.open(tmp_path / "a.PNG") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width == 1500
        assert 500 < image.height < 2500
        assert image.convert("L").getextrema() == (0, 255)


@both
def test_svg_is_xml_and_holds_the_names(draw, tmp_path):
    draw(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "<metadata>" not in text
    wanted = {draw_base: "blocks.*.attn.qkv  8×4", draw_tasks: "blocks.3.attn.qkv"}[draw]
    assert wanted in texts(text)


@pytest.mark.slow
@both
def test_html_is_one_page_that_loads_nothing(draw, tmp_path):
    draw(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in page.tags].count("svg") == 1
    assert {"title", "h1", "table"} <= {tag for tag, _ in page.tags}
    assert not {"script", "link", "img", "iframe", "object", "b"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert "://" not in (value or "") or name.startswith("xmlns")
            assert name not in ("href", "xlink:href", "src") or value.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\((?!#)", text)
    ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])


def test_html_tables_hold_the_numbers(tmp_path):
    draw_base(tmp_path / "base.html")
    cells = Page((tmp_path / "base.html").read_text(encoding="utf-8")).cells
    assert cells[7:14] == ["blocks.0-1.attn.qkv", "blocks.*.attn.qkv  8×4", "2", "3.25", "1.5", "0", "0.54 to 0.54"]
    assert len(cells) == 5 * 7
    draw_tasks(tmp_path / "tasks.html")
    cells = Page((tmp_path / "tasks.html").read_text(encoding="utf-8")).cells
    assert cells[:6] == ["module", "flowers", "_cars $x$ <b>", "blocks.0.attn.qkv", "0.1", "0.25"]
    assert cells[-6:] == ["flowers", "1", "–", "_cars $x$ <b>", "–", "1"]


@pytest.mark.slow
@both
@formats
def test_equal_input_gives_equal_bytes(draw, suffix, tmp_path, monkeypatch):
    draw(tmp_path / f"a{suffix}")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "figure.facecolor": "red"}):
        draw(tmp_path / f"b{suffix}")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@both
@pytest.mark.parametrize("name", ["a.pdf", "a", "a.svgz", ".png"])
def test_any_other_suffix_names_the_three(draw, name, tmp_path):
    with pytest.raises(RecastError, match=r"\.png, \.svg or \.html"):
        draw(tmp_path / name)
    assert not list(tmp_path.iterdir())


@both
def test_a_missing_folder_is_found_before_any_drawing(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(Figure, "subfigures", lambda *_, **__: pytest.fail("drawn too early"))
    with pytest.raises(RecastError, match="does not exist"):
        draw(tmp_path / "missing" / "a.png")


@pytest.mark.slow
@both
@formats
def test_nothing_is_left_half_written(draw, suffix, tmp_path, monkeypatch):
    (tmp_path / f"a{suffix}").write_text("before")

    def fail(self, target, **_):
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(tmp_path / f"a{suffix}")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(f"a{suffix}", "before")]


def test_undefined_values_are_never_printed_as_nan(tmp_path):
    plot_base(*fake(undefined=True), tmp_path / "base.html")
    plot_tasks([("a", changes(0.0)), ("b", changes(0.0))], [[None] * 2] * 2, tmp_path / "tasks.html")
    base, tasks = ((tmp_path / name).read_text(encoding="utf-8") for name in ("base.html", "tasks.html"))
    for page in (base, tasks):
        assert not re.search(r"\b(nan|none|inf)\b", re.sub(r"fill: none|>none<|: none", "", page), re.IGNORECASE)
    assert texts(base).count("undefined in every group") == 1
    assert "Mean distance of templates (Frobenius)" not in texts(base)  # a panel that no group has is left out
    assert texts(base).count("–") == 4 * 4


def test_a_gap_in_one_curve_leaves_the_others(tmp_path):
    base, banks = fake()
    gap = BankDiagnosis(**{**vars(banks[2]), "frobenius": None, "coefficient_similarity": None})
    plot_base(base, [*banks[:2], gap, *banks[3:]], tmp_path / "a.svg")
    written = texts((tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert "undefined in every group" not in written
    assert any("A group of one template has no distance between templates." in text for text in written)
    assert gap.name not in written
    assert banks[3].name in written


@pytest.mark.slow
@pytest.mark.parametrize(("error", "panels"), [(0.0, 0), (1e-6, 1)])
def test_errors_are_drawn_only_where_there_are_any(error, panels, tmp_path):
    plot_base(*fake(error=error), tmp_path / "a.svg")
    written = texts((tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert written.count("Largest relative error of a layer") == panels


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "layers", "maps"), [(1, 2, 1), (48, 1, 0), (30, 2, 24), (1, 40, 1)])
def test_one_to_many_groups(groups, layers, maps, tmp_path):
    base, banks = fake(groups, layers, roles=("attn.qkv",))
    plot_base(base, banks, tmp_path / "a.svg")
    written = texts((tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert sum(bank.name in written for bank in banks) == maps
    assert any("+6 more groups" in text for text in written) == (groups == 30)
    assert ("Cosine similarity of coefficients between the layers of a group" in written) == (maps > 0)


def test_one_task_needs_neither_legend_nor_similarity(tmp_path):
    plot_tasks([("flowers", changes(0.1))], None, tmp_path / "a.svg")
    written = texts((tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert "flowers beside the base" in written
    assert "flowers" not in written
    assert "Cosine similarity between the tasks" not in written


def test_every_task_is_in_the_legend(tmp_path):
    tasks = [(f"_task\n{number} $a$", changes(0.1 + number)) for number in range(12)]
    plot_tasks(tasks, torch.eye(12).tolist(), tmp_path / "a.svg")
    written = texts((tmp_path / "a.svg").read_text(encoding="utf-8"))
    for number in range(12):  # legend and both edges of the heat map
        assert written.count(f"_task {number} $a$") == 3


def test_names_are_shortened():
    assert short("abcdefghij", 10) == "abcdefghij"
    assert short("abcdefghijk", 10) == "abc…fghijk"
    assert short("a\nb\x00c\ud800", 10) == "a b c"
    assert short_names(("blocks.0.attn.qkv", "blocks.11.attn.qkv")) == ["0", "11"]
    assert short_names(("blocks.4.2.conv_pw", "blocks.5.0.conv_pw")) == ["4.2", "5.0"]
    assert short_names(("a", "b")) == ["a", "b"]
