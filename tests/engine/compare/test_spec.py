"""The YAML file of a comparison -> a plan, and which of its runs are still to do."""

import subprocess
import sys

import pytest
from fixtures.cli_helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from recast_cli.engine.compare import spec as comparison
from recast_cli.engine.compare.spec import read_comparison
from recast_cli.engine.compare.sweep import choose_rate, expected, next_runs, still_needed
from recast_cli.engine.errors import RecastError

TEXT = """
epochs: 3
image-size: 64
seeds: [4, 5]
sources:
  one: {source: vit_tiny_patch16_224, weights: w.safetensors, modules: 'blocks.*.attn.qkv', sets: 1}
tasks:
  a: images/a
  b: {data: images/b, split: pooled, epochs: 5}
methods:
  linear-probe:
  head: {method: head}
  recast:
  paper: {method: recast, layout: paper-attention, lr: 2e-3}
  lora: {rank: 2}
  listed: {method: bias, lr: [0.1, 0.01]}
"""


@pytest.fixture(autouse=True)
def _rates(monkeypatch):
    monkeypatch.setattr(comparison, "LEARNING_RATES", {"lora": 1e-3, "bias": 0.1})


def plan_of(text, path):
    path.write_text(text)
    return read_comparison(path)


@pytest.fixture
def plan(tmp_path):
    return plan_of(TEXT, tmp_path / "c.yaml")


def test_a_plan_holds_what_the_file_says(plan):
    assert plan.seeds == (4, 5)
    assert [(task.data, task.options.epochs, task.options.split) for task in plan.tasks.values()] == [
        ("images/a", 3, "auto"),
        ("images/b", 5, "pooled"),
    ]
    assert plan.tasks["a"].options.image_size == 64
    assert {name: (method.kind, method.rates) for name, method in plan.methods.items()} == {
        "linear-probe": ("linear-probe", ()),
        "head": ("head", ()),
        "recast": ("recast", (0.00666667, 0.02, 0.06)),
        "paper": ("recast", (0.002,)),
        "lora": ("lora", (0.000333333, 0.001, 0.003)),
        "listed": ("bias", (0.1, 0.01)),
    }
    assert plan.methods["lora"].options == {"rank": 2}


def test_a_method_s_layout_replaces_what_the_source_spells_out(plan):
    source = {"source": "vit_tiny_patch16_224", "weights": "w.safetensors"}
    assert plan.base_spec("one", "paper") == {**source, "layout": "paper-attention"}
    assert plan.base_spec("one", "recast") == {**source, "modules": ["blocks.*.attn.qkv"], "sets": 1}
    assert plan.base_spec("one", "lora") == plan.base_spec("one", "recast")


def test_neither_the_plan_nor_its_runs_need_torch():
    code = "import sys; from recast_cli.engine.compare import spec, sweep, leaderboard; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def keys(plan, **changes):
    place = {"source": "one", "task": "a", "method": "recast", "seed": 4, "lr": 0.02} | changes
    return plan.key(*place.values())


def test_a_key_depends_on_all_that_determines_a_run_and_on_no_name_or_folder(plan, tmp_path):
    different = {keys(plan), keys(plan, task="b"), keys(plan, seed=5), keys(plan, lr=0.06), keys(plan, method="paper")}
    different |= {keys(plan, method="lora"), keys(plan, method="head")}
    assert len(different) == 7
    elsewhere = tmp_path / "far" / "away"
    elsewhere.mkdir(parents=True)
    renamed = TEXT.replace("recast:", "ours: recast").replace("  one:", "  uno:").replace("  a:", "  alpha:")
    other = plan_of(renamed, elsewhere / "d.yaml")
    assert keys(other, source="uno", task="alpha", method="ours") == keys(plan)
    for old, new in {"epochs: 3": "epochs: 4", "size: 64": "size: 32", "sets: 1": "sets: 2", "s/a": "s/c"}.items():
        changed = plan_of(TEXT.replace(old, new), tmp_path / "e.yaml")
        assert keys(changed) != keys(plan), old
        # a probe is not trained, so epochs mean nothing to it
        probe = {"method": "linear-probe", "lr": None}
        assert (keys(changed, **probe) == keys(plan, **probe)) == (old == "epochs: 3"), old
    defaults = plan_of(TEXT.replace("epochs: 3", "epochs: 3\nbatch_size: 32\nsplit: auto"), tmp_path / "e.yaml")
    assert keys(defaults) == keys(plan)


def test_runs_of_an_earlier_pick_are_not_taken_for_those_of_today(tmp_path, monkeypatch):
    """Of the bare method alone: what is spelt out stays what it was, and so does what trains no coefficients."""
    bare = TEXT.replace("modules: 'blocks.*.attn.qkv', sets: 1", "budget: 49")
    assert bare != TEXT
    before, spelt = plan_of(bare, tmp_path / "c.yaml"), plan_of(TEXT, tmp_path / "d.yaml")
    names = ("recast", "paper", "lora", "head", "linear-probe")
    old = {name: (keys(before, method=name), keys(spelt, method=name)) for name in names}
    monkeypatch.setattr("recast_cli.engine.compare.spec.PICK", 999)
    after, again = plan_of(bare, tmp_path / "e.yaml"), plan_of(TEXT, tmp_path / "f.yaml")
    new = {name: (keys(after, method=name), keys(again, method=name)) for name in names}
    assert {name for name in names if new[name][0] != old[name][0]} == {"recast"}
    assert all(new[name][1] == old[name][1] for name in names)


def test_runs_of_an_earlier_way_to_choose_are_not_taken_for_those_of_today(tmp_path, monkeypatch):
    text = TEXT.replace("{method: head}", "{method: recast, choose: 8}")
    before = plan_of(text, tmp_path / "c.yaml")
    names = [*before.methods]
    old = {name: keys(before, method=name) for name in names}
    monkeypatch.setattr("recast_cli.engine.compare.spec.CHOOSER", 999)
    after = plan_of(text, tmp_path / "d.yaml")
    assert {name for name in names if keys(after, method=name) != old[name]} == {"head"}


def test_an_adapter_s_rate_is_swept_and_its_options_tell_runs_apart(tmp_path):
    methods = """methods:
  recast: {lr: 0.1}
  alone: {method: adapter, adapter: rosa}
  joined: {method: recast, adapter: rosa}
  denser: {method: recast, adapter: rosa, density: 0.5, lr: 0.1}
  mask: {method: adapter, adapter: piggyback}
"""
    plan = plan_of(TEXT[: TEXT.index("methods:")] + methods, tmp_path / "c.yaml")
    assert plan.methods["alone"].rates == plan.methods["joined"].rates == (0.000333333, 0.001, 0.003)
    assert plan.methods["mask"].start == 1e-4
    assert plan.methods["denser"].adapter == {"adapter": "rosa", "density": 0.5}
    assert plan.methods["denser"].options == {}
    assert len({keys(plan, method=name, lr=0.1) for name in plan.methods}) == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 3", "epoch: 3", "unknown key 'epoch'. Did you mean 'epochs'?"),
        ("epochs: 3", "lr: 3", "unknown key 'lr'"),
        ("epochs: 3", "sweep: 0.5", "sweep is 0.5"),
        ("epochs: 3", "epochs: [", "c.yaml line"),
        ("[4, 5]", "[4, 4]", "seeds are [4, 4]"),
        ("[4, 5]", "4", "seeds is a whole number"),
        ("weights: w", "weight: w", "unknown key 'sources.one.weight'. Did you mean 'weights'?"),
        ("{source: vit_tiny_patch16_224, ", "{", "sources.one names no source"),
        ("split: pooled", "splits: pooled", "unknown key 'tasks.b.splits'"),
        ("split: pooled", "split: all", "split all is unknown"),
        ("data: images/b, ", "", "tasks.b names no images"),
        ("method: bias", "method: lorra", "methods.listed: unknown method 'lorra'. Did you mean 'lora'?"),
        ("method: bias", "method: bias, epochs: 9", "methods.listed.epochs would give this method a budget"),
        ("method: bias", "method: bias, head-lr: 9", "methods.listed.head_lr would give this method a budget"),
        ("{method: head}", "{method: head, lr: 1}", "methods.head.lr: head has no learning rate"),
        ("layout: paper-attention", "layuot: x", "unknown key 'methods.paper.layuot'. Did you mean 'layout'?"),
        ("[0.1, 0.01]", "[0.1, fast]", "methods.listed.lr has 'fast'"),
        ("[0.1, 0.01]", "[]", "methods.listed.lr is empty"),
        ("[0.1, 0.01]", "-1", "methods.listed.lr has -1"),
        ("{method: head}", "{method: head, adapter: melo}", "methods.head: head has no adapter"),
        ("{method: head}", "{method: adapter}", "methods.head names no adapter"),
        ("{method: head}", "{method: adapter, adapter: lora}", "adapter lora is unknown"),
        ("{method: head}", "{method: adapter, adapter: melo, density: 0.1}", "adapter melo has no density"),
        ("{method: head}", "{method: recast, rank: 2}", "rank belongs to an adapter"),
        ("{method: head}", "{method: adapter, adapter: melo, choose: 8}", "only recast chooses coefficients"),
        ("{method: head}", "{method: head, choose: 8}", "methods.head: only recast chooses coefficients"),
        ("{method: head}", "{method: recast, choose: 1}", "choose 1 is too few"),
        ("{method: head}", "{method: recast, choose: 8, statistic: t}", "statistic t is unknown"),
        (TEXT[TEXT.index("methods:") :], "methods: {}", "methods is empty"),
        (TEXT, "", "is empty"),
        (TEXT, "- a", "holds a list"),
    ],
)
def test_what_is_wrong_is_named(old, new, message, tmp_path):
    assert old in TEXT
    with pytest.raises(RecastError) as error:
        plan_of(TEXT.replace(old, new), tmp_path / "c.yaml")
    assert message in str(error.value)
    assert "c.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecastError, match=r"no\.yaml does not exist"):
        read_comparison(tmp_path / "no.yaml")


def simulate(plan, accuracy):
    """Do all runs with the accuracies of a function: lines by key, and the runs in order."""
    results, order = {}, []
    while runs := next_runs(plan, results):
        assert len({run.key for run in runs}) == len(runs)
        for run in runs:
            val = accuracy(run.method, run.task, run.lr)
            results[run.key] = {"val_top1": val, "test_top1": 0.5 if run.test else None}
            order.append(run)
    return results, order


def brute_force(mean):
    """The rule in words: the steps tried and the chosen one, for a mean accuracy by step."""
    steps = [-1, 0, 1]
    while True:
        top = max(map(mean, steps))
        best = min((step for step in steps if mean(step) == top), key=lambda step: (abs(step), step))
        if best == min(steps) and best > -4:
            steps = [best - 1, *steps]
        elif best == max(steps) and best < 4:
            steps = [*steps, best + 1]
        else:
            return set(steps), best


@pytest.mark.slow
@given(st.lists(st.integers(0, 4), min_size=9, max_size=9), st.lists(st.integers(0, 4), min_size=9, max_size=9))
def test_the_sweep_is_that_of_the_rule(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("plan") / "c.yaml"
    plan = plan_of(TEXT[: TEXT.index("methods:")] + "methods:\n  lora:\n", path)
    rates = {float(f"{1e-3 * 3.0**step:.6g}"): step for step in range(-4, 5)}
    table = {"a": first, "b": second}
    results, order = simulate(plan, lambda _, task, lr: table[task][rates[lr] + 4] / 8)
    steps, best = brute_force(lambda step: first[step + 4] + second[step + 4])
    trained = [(run.task, rates[run.lr], run.seed) for run in order if not (run.seed == 4 and run.test)]
    tested = [(run.task, rates[run.lr], run.seed) for run in order if run.test]
    swept = [(task, step, 4) for task in "ab" for step in steps]
    assert sorted(trained) == sorted(swept + [(task, best, 5) for task in "ab"])
    assert sorted(tested) == [(task, best, seed) for task in "ab" for seed in (4, 5)]
    assert rates[choose_rate(plan, "one", "lora", results)[0]] == best
    assert still_needed(plan, results) == set()
    count = expected(plan, "one", "lora", results)
    assert count["runs"] == count["done"] == 2 * len(steps) + 2


def test_a_list_of_rates_does_not_grow_and_a_single_rate_is_not_swept(plan):
    _, order = simulate(plan, lambda method, task, lr: lr or 0.0)
    rates = {name: {run.lr for run in order if run.method == name} for name in plan.methods}
    assert rates["listed"] == {0.1, 0.01}
    assert rates["paper"] == {0.002}
    assert rates["head"] == rates["linear-probe"] == {None}
    assert max(rates["recast"]) == pytest.approx(0.02 * 3**4)
    probes = [run for run in order if run.method == "linear-probe"]
    assert [(run.task, run.seed, run.test) for run in probes] == [("a", 4, True), ("b", 4, True)]
    assert len([run for run in order if run.method == "head"]) == 4
    assert all(run.test for run in order if run.method in ("head", "paper"))


def test_sweep_1_takes_each_method_s_own_rate(tmp_path):
    plan = plan_of("sweep: 1\n" + TEXT, tmp_path / "c.yaml")
    assert plan.methods["recast"].rates == (0.02,)
    assert all(run.test for run in next_runs(plan, {}) if run.method == "recast")


def test_a_rate_at_which_training_diverges_is_not_chosen_and_a_method_that_cannot_run_is_not_tried_again(plan):
    results = {}
    while runs := [run for run in next_runs(plan, results) if run.method in ("lora", "recast")]:
        run = runs[0]
        line = {"val_top1": 0.5, "test_top1": 0.5 if run.test else None}
        if run.method == "recast" and run.lr > 0.01:
            line = {"error": "not finite", "diverged": True, "val_top1": None, "test_top1": None}
        if run.method == "lora" and run.task == "b":
            line = {"error": "no linear layer", "val_top1": None, "test_top1": None}
        results[run.key] = line
    assert choose_rate(plan, "one", "recast", results) == (0.00666667, [])
    assert choose_rate(plan, "one", "lora", results) == (0.001, [])
    errors = [line for line in results.values() if "error" in line and not line.get("diverged")]
    assert len(errors) == 1


def test_equal_methods_are_run_once(tmp_path):
    plan = plan_of(TEXT + "  again: {method: lora, rank: 2}\n", tmp_path / "c.yaml")
    twice = plan_of(TEXT, tmp_path / "d.yaml")
    assert len(next_runs(plan, {})) == len(next_runs(twice, {}))


def test_chosen_coefficients_have_a_start_rate_of_their_own(tmp_path):
    text = TEXT.replace("{method: head}", "{method: recast, choose: 2400, statistic: size}")
    plan = plan_of(text, tmp_path / "c.yaml")
    method = plan.methods["head"]
    assert (method.kind, method.options, method.adapter) == ("recast", {}, {"choose": 2400, "statistic": "size"})
    assert method.rates == (0.0133333, 0.04, 0.12)
    others = {
        keys(plan_of(TEXT.replace("{method: head}", given), tmp_path / "d.yaml"), method="head", lr=0.1)
        for given in ("{method: recast}", "{method: recast, choose: 8}", "{method: recast, choose: 10}")
    }
    assert len(others) == 3


def test_cross_fitted_runs_are_others_but_for_the_probe(plan, tmp_path):
    fitted = plan_of("cross-fit: true" + TEXT, tmp_path / "d.yaml")
    assert fitted.tasks["a"].options.cross_fit
    same = {name for name in plan.methods if keys(plan, method=name) == keys(fitted, method=name)}
    assert same == {"linear-probe"}
