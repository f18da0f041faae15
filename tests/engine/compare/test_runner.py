"""The runs of a comparison: what they are, what they leave, and that none is done twice."""

import json
import time
import weakref
from pathlib import Path

import pytest
import torch
from fixtures.compare import FEW, OUT, TIMES, YAML, plan_of, run_all

from recast_cli.engine.adapt import fit
from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.base.file import load_base
from recast_cli.engine.compare import artifacts, trial
from recast_cli.engine.compare import runner as engine
from recast_cli.engine.compare.artifacts import base_file
from recast_cli.engine.compare.runner import compare, read_results
from recast_cli.engine.compare.sweep import choose_rate
from recast_cli.engine.errors import RecastError
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions

pytestmark = pytest.mark.slow

pytest_plugins = ["fixtures.compare"]
KEYS = {
    *(
        "key",
        "source",
        "task",
        "method",
        "kind",
        "options",
        "seed",
        "lr",
        "head_lr",
        "epochs",
        "image_size",
        "floats",
        "places",
    ),
    *("degrees_of_freedom", "head_floats", "file_bytes", "base_id", "val_top1", "test_top1", "best_epoch", "seconds"),
    *("peak_memory_mb", "images_per_second", "device", "precision", "versions", "finished"),
}


def test_every_line_says_all_and_only_chosen_rates_see_test(whole):
    plan, results = whole
    lines = [json.loads(line) for line in (OUT / "runs.jsonl").read_text().splitlines()]
    assert all(line.keys() - {"penalty"} == KEYS for line in lines)
    for text in (OUT / "runs.jsonl").read_text().splitlines():
        assert list(json.loads(text)) == sorted(json.loads(text))
    for line in results.values():
        chosen = choose_rate(plan, line["source"], line["method"], results)[0]
        assert (line["test_top1"] is not None) == (line["lr"] == chosen)
    assert {line["seed"] for line in results.values() if line["method"] == "linear-probe"} == {0}
    counts = {line["method"]: (line["floats"], line["degrees_of_freedom"]) for line in lines}
    expected = {"linear-probe": (0, 0), "head": (0, 0)}
    for name in ("recast", "listed"):
        layout = load_base(base_file(plan, "vit", name, OUT)).layout
        expected[name] = (layout.coefficients, layout.degrees_of_freedom)
    assert counts == expected
    assert counts["listed"] == (32, 16)
    assert all((line["file_bytes"] > 0) == (line["floats"] > 0) for line in lines)
    assert list((OUT / "trained").iterdir()) == []
    assert len(list((OUT / "bases").glob("*.safetensors"))) == 2
    assert len(list((OUT / "probes").glob("*.safetensors"))) == 4


def test_a_second_call_does_nothing(whole, monkeypatch):
    before = (OUT / "runs.jsonl").read_bytes()
    monkeypatch.setattr(trial, "do_run", None)
    _, _, done = run_all(whole[0])
    assert done == []
    assert (OUT / "runs.jsonl").read_bytes() == before


def know_little(train, val, classes, class_weights=None):
    """A probe at random. Were it zero, the first step would leave all but the head where it is."""
    weight = 0.01 * torch.randn(classes, train[0].shape[1], generator=torch.Generator().manual_seed(0))
    return Probe(Head(weight, torch.zeros(classes)), 1.0, 0.0)


def test_recast_gives_the_numbers_of_adapt(folder, monkeypatch):
    """A probe that knows little at the start lets an epoch be the best one, so that what was trained is measured."""
    monkeypatch.setattr("recast_cli.engine.adapt.fit.fit_probe", know_little)
    text = FEW.replace("epochs: 1", "epochs: 3").replace("lr: 0.02", "lr: 0.2").replace("  shades: images/shades\n", "")
    plan = plan_of(text)
    results, _, _ = run_all(plan)
    base = load_base(base_file(plan, "vit", "recast", OUT))
    for seed in (0, 1):
        options = AdaptOptions(epochs=3, lr=0.2, seed=seed, precision="float32", choose=0)
        task = adapt(base, Path("images/colours"), f"seed{seed}", Path(f"tasks/seed{seed}"), options)
        line = results[plan.key("vit", "colours", "recast", seed, 0.2)]
        metrics = task.record["metrics"]
        assert metrics["best_epoch"] > 0
        for name in ("val_top1", "test_top1", "best_epoch"):
            assert line[name] == metrics[name]
        assert line["file_bytes"] == Path(f"tasks/seed{seed}/coefficients.safetensors").stat().st_size
        assert line["head_floats"] == task.record["head_parameters"]
        probe_line = results[plan.key("vit", "colours", "linear-probe", seed, None)]
        assert probe_line["test_top1"] == metrics["linear_probe_test_top1"]
        assert probe_line["val_top1"] == metrics["linear_probe_val_top1"]


def test_no_base_is_in_memory_beside_the_network_that_is_trained(folder, stub_methods, monkeypatch):
    bases = []

    def noted(path):
        base = load_base(path)
        bases.append(weakref.ref(base))
        return base

    def gone(*arguments, **options):
        assert {base() for base in bases} == {None}
        return train(*arguments, **options)

    train = fit.train
    monkeypatch.setattr(artifacts, "load_base", noted)
    monkeypatch.setattr(fit, "train", gone)
    methods = (
        "methods:\n  head:\n  recast: {lr: 0.2}\n  rosa: {method: recast, adapter: rosa, lr: 0.01}\n  norm: {lr: 0.5}\n"
    )
    _, failed, done = run_all(plan_of(FEW[: FEW.index("methods:")].replace("  shades: images/shades\n", "") + methods))
    assert (failed, len(done), bool(bases)) == (0, 8, True)


@pytest.mark.parametrize("name", ["melo", "rosa"])
def test_adapters_give_the_numbers_of_adapt(name, folder, monkeypatch):
    monkeypatch.setattr("recast_cli.engine.adapt.fit.fit_probe", know_little)
    shared = FEW[: FEW.index("methods:")].replace("epochs: 1", "epochs: 3").replace("  shades: images/shades\n", "")
    rows = f"methods:\n  joined: {{method: recast, adapter: {name}, lr: 0.01}}\n"
    rows += f"  alone: {{method: adapter, adapter: {name}, lr: 0.01}}\n"
    plan = plan_of(shared + rows)
    results, failed, _ = run_all(plan)
    assert failed == 0
    base = load_base(base_file(plan, "vit", "joined", OUT))
    found = set()
    for method in ("joined", "alone"):
        options = AdaptOptions(
            epochs=3, precision="float32", adapter=name, adapter_lr=0.01, coefficients=method == "joined"
        )
        task = adapt(base, Path("images/colours"), method, Path(f"tasks/{method}"), options)
        line = results[plan.key("vit", "colours", method, 0, 0.01)]
        metrics = task.record["metrics"]
        assert metrics["best_epoch"] > 0
        for key in ("val_top1", "test_top1", "best_epoch"):
            assert line[key] == metrics[key]
        floats = task.record["adapter"]["floats"]
        assert line["floats"] == floats + (base.layout.coefficients if method == "joined" else 0)
        size = Path(f"tasks/{method}/adapter.safetensors").stat().st_size
        if method == "joined":
            size += Path(f"tasks/{method}/coefficients.safetensors").stat().st_size
        assert line["file_bytes"] == size
        found.add(line["key"])
    assert len(found) == 2
    assert list((OUT / "trained").iterdir()) == []


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_cut_short_is_done_again_and_no_other(cut, folder):
    plan = plan_of(FEW)
    first, _, done = run_all(plan)
    assert len(done) == 6
    path = OUT / "runs.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    second, _, done = run_all(plan)
    assert len(done) == 1
    assert without_times(first) == without_times(second)
    assert path.read_bytes().startswith(content[: content[:-1].rindex(b"\n") + 1])
    assert without_times(read_results(OUT)) == without_times(first)


def test_a_damaged_line_in_the_middle_is_named(folder):
    OUT.mkdir()
    (OUT / "runs.jsonl").write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(RecastError, match="line 2 is damaged"):
        read_results(OUT)


def without_times(results):
    """What must be equal in equal runs."""
    return {key: {name: line[name] for name in line.keys() - TIMES} for key, line in results.items()}


def test_an_edit_reruns_only_what_it_changes(folder):
    run_all(plan_of(FEW))
    _, _, done = run_all(plan_of(FEW.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")))
    assert [(run.method, run.seed) for run, _ in done] == [("recast", 2)] * 2
    _, _, done = run_all(plan_of(FEW.replace("lr: 0.02", "lr: 0.03")))
    assert [(run.method, run.lr) for run, _ in done] == [("recast", 0.03)] * 4
    _, _, done = run_all(plan_of(FEW.replace("shades: i", "shades: ./i")))
    assert {run.task for run, _ in done} == {"shades"}
    _, _, done = run_all(plan_of(FEW.replace("  recast:", "  head:\n  recast:")))
    assert {run.method for run, _ in done} == {"head"}
    assert run_all(plan_of(FEW))[2] == []


def test_the_lines_alone_are_enough_to_go_on(folder):
    """Whoever keeps runs.jsonl alone loses no run, and what was trained but not measured is trained again."""
    plan = plan_of(YAML[: YAML.index("methods:")] + "methods:\n  recast:\n")

    class Stop(Exception):
        pass

    def stop(run, line, trouble):
        if len(read_results(OUT)) == 5:
            raise Stop

    with pytest.raises(Stop):
        compare(plan, OUT, on_run=stop)
    kept = (OUT / "runs.jsonl").read_bytes()
    results, _, done = run_all(plan)
    assert (OUT / "runs.jsonl").read_bytes().startswith(kept)
    for path in sorted(OUT.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (OUT / "runs.jsonl").write_bytes(kept)
    again, _, done_again = run_all(plan)
    assert [run for run, _ in done] == [run for run, _ in done_again]
    assert without_times(again) == without_times(results)


def test_a_method_of_another_kind(folder, stub_methods):
    plan = plan_of(YAML[: YAML.index("methods:")] + "methods:\n  norm: {lr: [0.001, 0.01]}\n")
    results, failed, _ = run_all(plan)
    assert failed == 0
    assert {line["floats"] for line in results.values()} == {(2 * 4 + 1) * 32}  # without the classifier
    assert all(line["degrees_of_freedom"] == line["floats"] for line in results.values())
    assert sum(line["test_top1"] is not None for line in results.values()) == 4
    with pytest.raises(RecastError, match=r"unknown key 'methods\.norm\.shape'\. Did you mean 'share'"):
        run_all(plan_of(YAML.replace("  head:", "  norm: {shape: 1}")))


def test_a_stored_run_is_measured_as_it_was_trained(folder, stub_methods, monkeypatch):
    """What is read back and measured on the validation images has the accuracy it had while it was trained."""
    monkeypatch.setattr("recast_cli.engine.adapt.fit.fit_probe", know_little)
    methods = "methods:\n  norm: {lr: 0.5}\n  recast: {lr: 0.2}\n  head:\n"
    plan = plan_of(YAML[: YAML.index("methods:")].replace("epochs: 1", "epochs: 3") + methods)
    test_of = trial.task_images

    def val_for_test(work, base, part):
        return test_of(work, base, "val" if part == "test" else part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "task_images", val_for_test)
        results, _, _ = run_all(plan)
    assert len(results) == 12
    assert all(line["test_top1"] == line["val_top1"] for line in results.values())


def test_the_time_of_a_call_with_nothing_to_do(whole):
    start = time.perf_counter()
    for _ in range(10):
        engine.next_runs(whole[0], whole[1])
    assert time.perf_counter() - start < 2


def test_chosen_coefficients_count_with_their_places(folder):
    chosen = FEW.replace("seeds: [0, 1]", "seeds: [0]").replace("{lr: 0.02}", "{choose: 8, lr: 0.05}")
    plan = plan_of(chosen)
    _, failed, done = run_all(plan)
    lines = [line for _, line in done if line["method"] == "recast"]
    assert failed == 0
    assert {(line["floats"], line["places"], line["degrees_of_freedom"]) for line in lines} == {(8, 4, 4)}
    assert all(line["options"] == {"choose": 8} and line["test_top1"] is not None for line in lines)
    task = adapt(
        load_base(base_file(plan, "vit", "recast", OUT)),
        Path("images/colours"),
        "colours",
        Path("tasks/colours"),
        AdaptOptions(epochs=1, precision="float32", choose=8, lr=0.05),
    )
    (line,) = (line for line in lines if line["task"] == "colours")
    assert line["val_top1"] == task.record["metrics"]["val_top1"]
    assert line["test_top1"] == task.record["metrics"]["test_top1"]
