"""What training does on a graphics card, where there is none: with tensors that have a device but no numbers.

Fake tensors refuse to mix devices, and refuse to tell a number, which is what makes a CPU wait for a card.
"""

from collections import defaultdict

import pytest
import torch
from helpers import drawn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from recast_cli.engine.adapt import learner as join
from recast_cli.engine.adapt.fit import begin
from recast_cli.engine.adapt.learner import make_learner
from recast_cli.engine.adapt.linear_probe import Probe
from recast_cli.engine.adapt.loop import TrainingData, train
from recast_cli.engine.images.transforms import statistics
from recast_cli.engine.layout.plan import plan_layout
from recast_cli.engine.mimic.decompose.decompose import mimic
from recast_cli.engine.model import switcher as switch
from recast_cli.engine.model.coefficient_gradients import cheap_gradients
from recast_cli.engine.model.frozen_norms import frozen_norms
from recast_cli.engine.model.switcher import Switcher
from recast_cli.engine.runtime import accumulate as batch
from recast_cli.engine.runtime.inference import infer, take_features
from recast_cli.engine.task.head import Head
from recast_cli.engine.task.options import AdaptOptions, settled


def gradients(root, parameters, materialize_grads=False):
    """`torch.autograd.grad` of a number, node by node: the engine of autograd asks the card for a stream."""
    start = root.grad_fn
    waiting, given, seen, todo = defaultdict(int), defaultdict(dict), {start}, [start]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                todo += [node] if node not in seen else []
                seen.add(node)
    given[start][0] = torch.ones_like(root)
    found, ready = {}, [start]
    while ready:
        node = ready.pop()
        own = given.pop(node, {})
        if hasattr(node, "variable"):
            found[id(node.variable)] = own[0]
            continue
        results = None
        if own:
            with torch.no_grad():
                results = getattr(node, "apply", node)(*(own.get(at) for at in range(len(node._input_metadata))))
        results = results if isinstance(results, tuple) else [results] * len(node.next_functions)
        # functions of our own give None for what is no tensor, too, at their end
        for (following, place), value in zip(node.next_functions, results, strict=False):
            if following is None:
                continue
            if value is not None:
                like, before = following._input_metadata[place], given[following].get(place)
                value = value.sum_to_size(like.shape).to(like.dtype)
                given[following][place] = value if before is None else before + value
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)
    return [found.get(id(each), torch.zeros_like(each)) for each in parameters]


@pytest.fixture
def card(monkeypatch, vit_base, conv_base):
    """A graphics card without numbers; the bases are asked for so that they are made before, with numbers."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    monkeypatch.setattr(batch, "Replayed", lambda work: work)
    for name in ("attach", "merge"):  # networks are built with numbers, and sent there
        monkeypatch.setattr(join, name, with_numbers(getattr(join, name)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda", 0)
    statistics.cache_clear()  # a machine with a card wants numbers


def with_numbers(function):
    """`function` without fake tensors."""

    def run(*args, **options):
        with unset_fake_temporarily():
            return function(*args, **options)

    return run


def test_gradients_node_by_node_are_those_of_autograd(vit_base, conv_base):
    for base in (vit_base, conv_base):
        learner = make_learner(base, settled(AdaptOptions(choose=0), base.layout, None), torch.device("cpu"))
        with cheap_gradients(learner.model), frozen_norms(learner.model):
            value = learner.model(torch.randn(3, 3, 32, 32)).square().sum()
            expected = torch.autograd.grad(value, learner.coefficients, retain_graph=True)
            for found, each in zip(gradients(value, learner.coefficients), expected, strict=True):
                torch.testing.assert_close(found, each)


# not AdaptFormer, whose layers are made empty, which fake tensors cannot be
ADAPTERS = {"vit": ["melo", "dora", "rosa", "rosa-mlp"], "conv": ["piggyback", "clr"]}
CASES = [(kind, {"adapter": name}) for kind, names in ADAPTERS.items() for name in names]
CASES += [(kind, {}) for kind in ("vit", "one", "conv")]
CASES += [("vit", {"recipe": "paper"}), ("vit", {"adapter": "melo", "coefficients": False})]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "given"), CASES, ids=str)
def test_an_epoch_stays_on_the_card_and_never_waits_for_it(kind, given, request, vit_source, card):
    """All tensors of its steps have one device, and no number is asked for before the mean loss at the end."""
    if kind == "one":  # template
        base = with_numbers(mimic)(vit_source, plan_layout(vit_source.modules))
    else:
        base = request.getfixturevalue(f"{kind}_base")
    images, data = with_numbers(drawn)(10, 0), base.known_architecture().preprocessing
    options = settled(AdaptOptions(batch_size=4, **({"choose": 0} | given)), base.layout, None)
    learner = make_learner(base, options, card)
    found = infer(take_features(learner.model), images.pixels, data, card)
    probe = Probe(Head(torch.zeros(2, found.shape[1]), torch.zeros(2)), 0.5, 1.0)
    training_data = TrainingData({"train": images, "val": images}, 2, data, options)
    with pytest.raises(DataDependentOutputException) as error:
        train(learner, begin(learner, training_data, probe), training_data)
    asking = [entry for entry in error.traceback if "recast_cli" in str(entry.path)][-1]
    assert "float(total) / count" in str(asking.statement)
    assert {each.device for each in asking.frame.f_locals["parameters"]} == {card}


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_a_switch_stays_on_the_card(kind, request, card, monkeypatch):
    monkeypatch.setattr(switch, "choose_device", lambda name: card)
    monkeypatch.setattr(switch, "merge", with_numbers(switch.merge))
    base = request.getfixturevalue(f"{kind}_base")
    vector = with_numbers(lambda: base.vector)()  # which the base keeps
    model = Switcher(base).switch(vector)
    assert {each.device for each in model.state_dict().values()} == {card}
