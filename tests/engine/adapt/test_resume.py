"""A run that is killed goes on to the same bytes."""

import dataclasses
import json

import pytest
import torch

from recast_cli.engine.adapt import resume
from recast_cli.engine.adapt.adapt import adapt
from recast_cli.engine.errors import RecastError
from recast_cli.engine.task.options import AdaptOptions

OPTIONS = AdaptOptions(epochs=4, batch_size=8, seed=2)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("every_epoch_counts")]
FILES = ("coefficients.safetensors", "head.safetensors")


def learned_bytes(folder):
    return [(folder / name).read_bytes() for name in FILES]


def run(base, data, folder, options=OPTIONS, **rest):
    return adapt(base, data, "t", folder, options, device="cpu", **rest)


def kill_after(number):
    def on_epoch(epoch):
        if epoch.number == number:
            raise KeyboardInterrupt

    return on_epoch


@pytest.fixture(scope="module")
def whole(vit_base, data, every_epoch_counts, tmp_path_factory):
    """The run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "tasks" / "t"
    task = run(vit_base, data, folder)
    assert task.record["metrics"]["best_epoch"] > 0
    return task, folder


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_killed_after_an_epoch(number, whole, vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    with pytest.raises(KeyboardInterrupt):
        run(vit_base, data, folder, on_epoch=kill_after(number))
    assert not (folder / "task.yaml").exists()
    assert (folder / "resume.pt").exists() == (number > 0)
    seen = []
    task = run(vit_base, data, folder, on_epoch=lambda epoch: seen.append(epoch.number))
    assert seen == [0, 1, 2, 3, 4]
    assert learned_bytes(folder) == learned_bytes(whole[1])
    assert task.record["metrics"] == whole[0].record["metrics"]
    assert [epoch["loss"] for epoch in task.record["history"]] == [e["loss"] for e in whole[0].record["history"]]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "task.yaml"])


def test_a_killed_run_of_version_0_1_goes_on(whole, vit_base, data, tmp_path):
    """Lists that end with the head; whoever changes them has to go on from files that were written before."""
    folder = tmp_path / "tasks" / "t"
    with pytest.raises(KeyboardInterrupt):
        run(vit_base, data, folder, on_epoch=kill_after(2))
    content = torch.load(folder / "resume.pt", weights_only=True)
    (content["optimizer"],) = content["optimizer"]  # there it was AdamW's alone
    assert content["optimizer"].keys() == {"state", "param_groups"}
    coefficients = [vit_base.coefficients(name).shape for name in vit_base.layout.modules]
    for key in ("trained", "best"):
        assert [tensor.shape for tensor in content[key]] == [*coefficients, (3, 32), (3,)]
    assert [tensor.shape for tensor in content["probe"]] == [(3, 32), (3,)]
    assert content.keys() == {
        *("identity", "trained", "best", "probe", "probe_val_top1", "penalty"),
        *("best_epoch", "batch_size", "optimizer", "history", "fixed"),
    }
    assert content["best_epoch"] == len(content["history"]) - 1 == 2
    identity = json.loads(content["identity"])
    known = "recipe epochs lr head_lr batch_size patience seed image_size split split_seed class_weights on_bad_image"
    known = f"{known} precision adapter rank density adapter_lr coefficients".split()
    assert identity["options"].keys() == {*known, *resume.LATER}
    identity["options"] = {name: identity["options"][name] for name in known}
    torch.save(content | {"identity": json.dumps(identity)}, folder / "resume.pt")
    run(vit_base, data, folder)
    assert learned_bytes(folder) == learned_bytes(whole[1])


def test_only_the_epochs_that_are_left_are_trained(vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    with pytest.raises(KeyboardInterrupt):
        run(vit_base, data, folder, on_epoch=kill_after(3))
    texts = set()
    run(vit_base, data, folder, progress=lambda done, total, text: texts.add(text))
    assert {text for text in texts if text.startswith("epoch")} == {"epoch 4/4"}
    assert not any("features of train" in text for text in texts)  # the probe is not fitted again


def test_killed_in_the_middle_of_an_epoch_and_twice(whole, vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    for epoch in ("epoch 2/4", "epoch 4/4"):

        def progress(done, total, text, epoch=epoch):
            if text == epoch:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(vit_base, data, folder, progress=progress)
    (folder / ".coefficients.safetensors.abc.tmp").write_bytes(b"half")
    run(vit_base, data, folder)
    assert learned_bytes(folder) == learned_bytes(whole[1])
    assert not list(folder.glob(".*"))


def test_other_options_do_not_go_on(vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    with pytest.raises(KeyboardInterrupt):
        run(vit_base, data, folder, on_epoch=kill_after(2))
    state = (folder / "resume.pt").read_bytes()
    for change in ({"lr": 0.5}, {"epochs": 5}, {"split_seed": 3}, {"image_size": 40}):
        with pytest.raises(RecastError, match="restart=True"):
            run(vit_base, data, folder, dataclasses.replace(OPTIONS, **change))
    assert (folder / "resume.pt").read_bytes() == state
    seen = []
    run(vit_base, data, folder, dataclasses.replace(OPTIONS, epochs=1), restart=True, on_epoch=seen.append)
    assert [epoch.number for epoch in seen] == [0, 1]


def test_a_killed_restart_leaves_the_old_task_and_goes_on(whole, vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    run(vit_base, data, folder, dataclasses.replace(OPTIONS, epochs=1))
    old, seen = learned_bytes(folder), []
    with pytest.raises(KeyboardInterrupt):
        run(vit_base, data, folder, restart=True, on_epoch=kill_after(2))
    assert learned_bytes(folder) == old
    assert run(vit_base, data, folder, dataclasses.replace(OPTIONS, epochs=1)).record["options"]["epochs"] == 1
    run(vit_base, data, folder, restart=True, on_epoch=seen.append)
    assert [epoch.number for epoch in seen][:4] == [0, 1, 2, 3]
    assert learned_bytes(folder) == learned_bytes(whole[1])
    assert not (folder / "resume.pt").exists()


def test_a_damaged_state_is_said_and_can_be_restarted(whole, vit_base, data, tmp_path):
    folder = tmp_path / "tasks" / "t"
    folder.mkdir(parents=True)
    for content in (b"", b"no pickle"):
        (folder / "resume.pt").write_bytes(content)
        with pytest.raises(RecastError, match=r"resume\.pt is damaged"):
            run(vit_base, data, folder)
    torch.save({"identity": 3}, folder / "resume.pt")
    with pytest.raises(RecastError, match="restart=True"):
        run(vit_base, data, folder)
    run(vit_base, data, folder, restart=True)
    assert learned_bytes(folder) == learned_bytes(whole[1])


def test_what_was_begun_before_the_default_changed_keeps_what_it_was_begun_with(scaled_base, data, tmp_path):
    folder, before = tmp_path / "tasks" / "t", dataclasses.replace(OPTIONS, epochs=2, choose=0)
    with pytest.raises(KeyboardInterrupt):
        run(scaled_base, data, folder, before, on_epoch=kill_after(1))
    today, seen = dataclasses.replace(before, choose=None), []
    task = run(scaled_base, data, folder, today, on_epoch=lambda epoch: seen.append(epoch.seconds))
    assert len(seen) == 3
    assert (task.vector.shape, task.places) == ((48,), None)
    assert run(scaled_base, data, folder, today).record == task.record
    again = run(scaled_base, data, folder, today, restart=True)
    assert (again.vector.shape, again.places.shape) == ((36,), (12, 2))
    assert again.record["options"]["choose"] == 48
    with pytest.raises(RecastError, match="is finished with choose 48, now choose is 0"):
        run(scaled_base, data, folder, before)
