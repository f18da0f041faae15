"""Adapters on the command line: `adapt --adapter`, and what eval, predict and inspect make of such a task."""

from pathlib import Path

import pytest
from fixtures.cli_helpers import QUICK, recast, recast_json, refused

pytest_plugins = ["fixtures.cli"]


@pytest.mark.slow
def test_an_adapter_is_learned_beside_the_coefficients(fresh):
    value = recast_json("adapt", "--task", "colours", "--adapter", "melo", "--rank", 2, *QUICK)
    file = fresh / "tasks" / "colours" / "adapter.safetensors"
    assert value["coefficients"] == 48
    assert value["adapter"] == {
        "name": "melo",
        "options": {"rank": 2, "seed": 0},
        "floats": 12 * 2 * 2 * 64,
        "bytes": file.stat().st_size,
    }
    assert [Path(each).name for each in value["files"]] == [
        "coefficients.safetensors",
        "head.safetensors",
        "adapter.safetensors",
        "task.yaml",
    ]
    (found,) = recast_json("eval", "--task", "colours")["tasks"]
    assert found["top1"] == value["test_top1"]


@pytest.mark.slow
def test_people_are_told_what_was_learned(fresh):
    both = recast("adapt", "--task", "colours", "--adapter", "rosa-mlp", *QUICK).stdout
    assert "48 coefficients, 24 numbers of rosa-mlp" in " ".join(both.split())
    alone = recast("adapt", "--task", "shades", "--adapter", "dora", "--no-coefficients", *QUICK).stdout
    assert "coefficients" not in alone.replace("coefficients are", "")
    assert "numbers of dora" in alone
    assert "dora, rank 1, seed 0" in recast("inspect", "shades").stdout
    value = recast_json("inspect", "shades")
    assert value["adapter"]["name"] == "dora"
    assert all(each["moved"] == 0 for bank in value["banks"] for each in bank["modules"])
    assert recast_json("inspect", "colours")["adapter"]["floats"] == 24


@pytest.mark.slow
def test_eval_of_all_and_predict_use_each_task_s_adapter(ready):
    recast("adapt", "--task", "shades", "--adapter", "adaptformer", "--restart", *QUICK)
    both = {each["task"]: each["top1"] for each in recast_json("eval", "--all")["tasks"]}
    for task, top1 in both.items():
        (alone,) = recast_json("eval", "--task", task)["tasks"]
        assert alone["top1"] == top1
    image = sorted((ready / "data" / "shades" / "dark").iterdir())[0]
    before = recast_json("predict", "--task", "shades", image)["predictions"][0]["probability"]
    (ready / "tasks" / "shades" / "adapter.safetensors").unlink()
    assert "adapter.safetensors" in refused("predict", "--task", "shades", image)
    assert 0 < before <= 1


@pytest.mark.slow
def test_the_settings_file_may_name_an_adapter_and_a_flag_wins(fresh):
    text = "tasks: {colours: {adapter: melo, rank: 3, coefficients: false}}\n"
    (fresh / "recast.yaml").write_text(text)
    value = recast_json("adapt", "--task", "colours", "--rank", 2, "--coefficients", *QUICK)
    assert (value["adapter"]["options"]["rank"], value["coefficients"]) == (2, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--adapter", "lora"), "--adapter lora is unknown"),
        (("--adapter", "piggyback"), "The adapter piggyback needs convolutions beyond a stem"),
        (("--adapter", "clr"), "Use melo, adaptformer, dora, rosa and rosa-mlp here"),
        (("--rank", 2), "--rank belongs to an adapter"),
        (("--adapter", "melo", "--density", 0.1), "--adapter melo has no density"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message, fresh):
    assert message in refused("adapt", "--task", "colours", *arguments)


@pytest.mark.slow
def test_a_finished_task_with_another_adapter_is_not_mistaken(fresh):
    recast("adapt", "--task", "colours", "--adapter", "melo", *QUICK)
    assert "adapter melo" in refused("adapt", "--task", "colours", *QUICK)
    assert "rank 1" in refused("adapt", "--task", "colours", "--adapter", "melo", "--rank", 2, *QUICK)
