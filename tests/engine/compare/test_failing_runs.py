"""Runs of a comparison that cannot be or fail: what is recorded, what is tried again, and that the rest goes on."""

import pytest
from fixtures.compare import FEW, OUT, YAML, plan_of, run_all

from recast_cli.engine.compare import trial
from recast_cli.engine.compare.runner import compare
from recast_cli.engine.compare.sweep import choose_rate
from recast_cli.engine.errors import RecastError

pytestmark = pytest.mark.slow

pytest_plugins = ["fixtures.compare"]


def test_what_cannot_run_is_a_result_and_is_not_tried_again(folder, stub_methods):
    plan = plan_of(YAML.replace("  head:", "  norm: {share: 0}").replace("paper-mlp", "paper-resnet"))
    results, failed, done = run_all(plan)
    assert failed == 0
    errors = {line["method"]: line["error"] for line in results.values() if "error" in line}
    assert errors["norm"] == "share is 0. Give more."
    assert "paper-resnet" in errors["listed"]
    assert len([run for run, _ in done if run.method == "norm"]) == 2
    assert run_all(plan)[2] == []


def test_a_loss_that_is_no_longer_finite_costs_its_rate(folder, monkeypatch):
    plan = plan_of(FEW.replace("lr: 0.02", "lr: [0.02, 1.0e+30]"))
    results, failed, _ = run_all(plan)
    assert failed == 0
    assert choose_rate(plan, "vit", "recast", results) == (0.02, [])


def test_a_fault_leaves_no_line_and_the_rest_goes_on(folder, monkeypatch):
    plan = plan_of(FEW)
    sound = trial.do_run

    def faulty(plan, run, *rest):
        if (run.task, run.seed, run.method) == ("colours", 1, "recast"):
            raise OSError("disk on fire")
        return sound(plan, run, *rest)

    monkeypatch.setattr(trial, "do_run", faulty)
    troubles = []
    results, failed = compare(plan, OUT, on_run=lambda run, line, trouble: troubles.append(trouble))
    assert failed == 1
    assert [text for text in troubles if text] == ["OSError: disk on fire"]
    assert len(results) == 5
    monkeypatch.setattr(trial, "do_run", sound)
    assert len(run_all(plan)[2]) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("images/shades", "images/none", "tasks.shades.data: the folder images/none does not exist"),
        ("vit: vit", "vit: {source: vit_tiny_patch16_224, weights: w.safetensors}", "sources.vit.weights: w.safe"),
        ("vit: vit", "vit: vit_tinny_patch16_224", "sources.vit: timm"),
    ],
)
def test_missing_files_are_named_before_anything_is_trained(old, new, message, folder):
    with pytest.raises(RecastError) as error:
        run_all(plan_of(YAML.replace(old, new)))
    assert message in str(error.value)
    assert not (OUT / "runs.jsonl").exists()
