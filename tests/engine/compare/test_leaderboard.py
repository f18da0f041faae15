"""The table and the plot of a comparison."""

import numpy as np
import pytest
from fixtures.compare import YAML, plan_of
from matplotlib.figure import Figure

from recast_cli.engine.compare.figure import overlap, plot_leaderboard
from recast_cli.engine.compare.leaderboard import Row, leaderboard, markdown, remark, table_of

pytest_plugins = ["fixtures.compare"]
METHODS = """methods:
  linear-probe:
  recast: {lr: 0.02}
  lora-1: {method: lora, lr: 0.1}
  lora-2: {method: lora, lr: 0.2}
  broken: {method: lora, lr: 0.3}
"""
FLOATS = {"linear-probe": 0, "recast": 48, "lora-1": 500, "lora-2": 1000}


@pytest.fixture
def plan(tmp_path):
    text = YAML[: YAML.index("methods:")].replace("[0, 1]", "[0, 1, 2]") + METHODS
    return plan_of(text)


@pytest.fixture
def numbers():
    """Random accuracies by method, task and seed."""
    generator = np.random.default_rng(0)
    low = {"linear-probe": 0.5, "recast": 0.6, "lora-1": 0.7, "lora-2": 0.8}
    return {name: low[name] + 0.05 * generator.random((2, 1 if name == "linear-probe" else 3)) for name in low}


def lines_of(plan, numbers):
    """The lines that stand for the accuracies."""
    results = {}
    for name, table in numbers.items():
        for place, task in enumerate(plan.tasks):
            for seed in range(table.shape[1]):
                rate = plan.methods[name].rates[0] if plan.methods[name].rates else None
                results[plan.key("vit", task, name, seed, rate)] = {
                    "floats": FLOATS[name],
                    "degrees_of_freedom": FLOATS[name] // 2,
                    "file_bytes": 10 * FLOATS[name],
                    "val_top1": 0.5,
                    "test_top1": table[place, seed],
                    "seconds": 10.0 * place + seed,
                    "peak_memory_mb": 100.0 + place + seed,
                }
    results[plan.key("vit", "colours", "broken", 0, 0.3)] = {"error": "no way", "val_top1": None, "test_top1": None}
    results[plan.key("vit", "shades", "broken", 0, 0.3)] = {"error": "no way", "val_top1": None, "test_top1": None}
    return results


def test_the_numbers_are_numpy_s(plan, numbers):
    rows = {row.method: row for row in leaderboard(plan, lines_of(plan, numbers))}
    assert list(rows) == ["lora-2", "lora-1", "recast", "linear-probe", "broken"]
    means = {name: table.mean(1).mean() for name, table in numbers.items()}
    for name, table in numbers.items():
        row = rows[name]
        assert row.mean == pytest.approx(means[name])
        assert row.gain == pytest.approx(means[name] - means["linear-probe"])
        assert row.gap == pytest.approx(
            (means[name] - means["linear-probe"]) / (means["lora-1"] - means["linear-probe"])
        )
        for place, score in enumerate(row.tasks.values()):
            assert score.mean == pytest.approx(table[place].mean())
            if name != "linear-probe":
                assert score.std == pytest.approx(table[place].std(ddof=1))
        if name != "linear-probe":
            assert row.std == pytest.approx(table.mean(0).std(ddof=1))
            assert row.seconds == pytest.approx(np.median([0, 1, 2, 10, 11, 12]))
            assert row.peak_memory_mb == 103
        assert (row.floats, row.degrees_of_freedom, row.file_bytes) == (
            FLOATS[name],
            FLOATS[name] // 2,
            10 * FLOATS[name],
        )
    assert [name for name, row in rows.items() if row.best] == ["recast"]
    assert (rows["broken"].mean, rows["broken"].error) == (None, "no way")


def test_rows_that_are_not_whole_say_so_and_are_compared_with_none(plan, numbers):
    results = lines_of(plan, numbers)
    del results[plan.key("vit", "shades", "recast", 2, 0.02)]
    rows = {row.method: row for row in leaderboard(plan, results)}
    row = rows["recast"]
    assert remark(row) == "rests on 5 of 6 runs"
    assert (row.gap, row.best, row.tasks["shades"].runs) == (None, False, 2)
    # the spread of the mean is over the seeds that have every task
    assert row.std == pytest.approx(numbers["recast"][:, :2].mean(0).std(ddof=1))
    assert remark(rows["broken"]) == "cannot run: no way"
    assert remark(rows["lora-1"]) == ""
    assert rows["linear-probe"].best  # the best whole row of few floats is then the probe


def test_a_row_that_lacks_a_task_does_not_stand_among_those_that_have_all(plan, numbers):
    numbers["recast"][0] = 1.0  # by far the best on the task that is left
    results = lines_of(plan, numbers)
    for seed in plan.seeds:
        del results[plan.key("vit", "shades", "recast", seed, 0.02)]
    order = [row.method for row in leaderboard(plan, results)]
    assert order.index("recast") == len(order) - 2
    assert order[-1] == "broken"


def test_without_results_all_rows_are_there(plan):
    rows = leaderboard(plan, {})
    assert [row.method for row in rows] == list(plan.methods)
    assert {remark(row) for row in rows} == {"not finished"}
    assert "| lora-1 (not finished) | – |" in markdown(plan, rows)


def test_the_table_in_markdown(plan, numbers):
    rows = leaderboard(plan, lines_of(plan, numbers))
    lines = markdown(plan, rows).splitlines()
    head = next(line for line in lines if line.startswith("| method"))
    assert head.endswith("| colours | shades | mean | over the probe | of the gap to lora-1 | seconds | peak MB |")
    body = [line for line in lines if line.startswith("|")][2:]
    assert len(body) == 5
    assert {line.count("|") for line in [head, *body]} == {head.count("|")}
    bold = next(line for line in body if "**recast**" in line)
    table = numbers["recast"]
    assert f"**{100 * table.mean():.1f} ± {100 * table.mean(0).std(ddof=1):.1f}**" in bold
    names, texts = table_of(plan, rows)
    assert [len(each) for each in texts] == [len(names)] * 5


def test_without_a_lora_there_is_no_gap(plan, numbers):
    del numbers["lora-1"], numbers["lora-2"]
    rows = leaderboard(plan, lines_of(plan, numbers))
    assert "gap" not in markdown(plan, rows)


@pytest.fixture
def figures(monkeypatch):
    """Figures that were saved."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: (saved.append(figure), path.touch()))
    return saved


def crowd(sources=("one", "two")):
    """Rows as close together as real ones are."""
    rows = []
    for source in sources:
        rows += [Row(source, "linear-probe", "linear-probe", None, 1, floats=0, mean=0.76)]
        rows += [Row(source, "head", "head", None, 1, floats=0, mean=0.762, std=0.001)]
        names = ("recast", "recast-paper", "lora-xs", "unilora", "tinylora", "fourierft", "waveft")
        for place, name in enumerate(names):
            kind = name.split("-paper")[0]
            rows.append(Row(source, name, kind, 0.1, 3, floats=48, mean=0.79 - 0.003 * place, std=0.003))
        for place, floats in enumerate((4608, 5000, 5500, 9600)):
            rows.append(Row(source, f"lora-{place}", "lora", 0.1, 3, floats=floats, mean=0.8, std=0.003))
        rows.append(Row(source, "broken", "lora", 0.1, 3))
    return rows


@pytest.mark.slow
def test_each_method_of_the_plot_has_a_label_that_covers_no_other(figures, tmp_path):
    rows = crowd()
    plot_leaderboard(rows, tmp_path / "plot.png")
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    for axis in figure.axes:
        labels = [text for text in axis.texts if text.get_text().strip()]
        names = {text.get_text() for text in labels} - {" 48 floats"}
        assert names == {row.method for row in rows} - {"broken"}
        boxes = [text.get_window_extent() for text in labels]
        pairs = [(one, other) for place, one in enumerate(boxes) for other in boxes[:place]]
        assert max(overlap(one, other) for one, other in pairs) == 0
        assert axis.get_xscale() == "log"
        bold = {text.get_text() for text in labels if text.get_weight() == "bold"}
        assert bold == {"recast", "recast-paper"}


@pytest.mark.slow
def test_a_plot_of_next_to_nothing(tmp_path):
    for rows in ([Row("one", "recast", "recast", None, 1)], crowd(("one",))[:2]):
        plot_leaderboard(rows, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plot_leaderboard(crowd(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
