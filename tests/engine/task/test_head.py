"""The head as a function of features."""

import dataclasses

import numpy as np
import torch
from fixtures.export import task_of

from recast_cli.engine.task.head import Head


def test_logits_are_a_product_with_every_class_and_its_bias():
    head = Head(torch.tensor([[1.0, 2.0], [0.0, -1.0], [0.5, 0.0]]), torch.tensor([0.0, 10.0, 1.0]))
    np.testing.assert_array_equal(head(torch.tensor([[3.0, 4.0], [1.0, 0.0]])), [[11.0, 6.0, 2.5], [1.0, 10.0, 1.5]])
    assert head.floats == 9


def test_a_task_s_head_follows_its_weight_and_bias(vit_base):
    task = task_of(vit_base)
    moved = dataclasses.replace(task, bias=task.bias + 1)
    assert moved.head.weight is task.weight
    torch.testing.assert_close(moved.head(torch.ones(1, 32)), task.head(torch.ones(1, 32)) + 1)
