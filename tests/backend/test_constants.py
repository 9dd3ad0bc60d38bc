"""What depends on no input of a graph is computed once."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from keras_llm.backend.torch import constants
from keras_llm.backend.torch.constants import fold_constants

pytestmark = pytest.mark.torch_only


def traced(function, *inputs):
    module = make_fx(function, tracing_mode="fake")(*inputs)
    fold_constants(module)
    return module


def names(module):
    return {node.target._opname for node in module.graph.nodes if node.op == "call_function"}


def rotated(x):
    return x * torch.cos(torch.arange(x.shape[-1], dtype=torch.float32))


def test_a_table_is_computed_once_and_the_result_is_the_same():
    x = torch.randn(3, 5)
    module = traced(rotated, x)
    assert names(module) == {"mul"}
    assert torch.equal(module(x), rotated(x))


def test_random_numbers_are_drawn_in_each_call():
    module = traced(lambda x: x + torch.rand(4), torch.zeros(4))
    assert not torch.equal(module(torch.zeros(4)), module(torch.zeros(4)))


def test_what_is_written_to_is_made_in_each_call():
    def counted(x):
        total = torch.zeros(4)
        total.view(2, 2).add_(x)
        return total

    module = traced(counted, torch.ones(2, 2))
    for _ in range(2):
        assert module(torch.ones(2, 2)).tolist() == [1.0] * 4


def test_a_large_constant_is_made_in_each_call(monkeypatch):
    monkeypatch.setattr(constants, "MAX_BYTES", 16)
    module = traced(rotated, torch.randn(3, 5))
    assert names(module) == {"arange", "cos", "mul"}


def test_a_graph_made_without_gradients_is_differentiated_later():
    with torch.inference_mode():
        module = traced(rotated, torch.randn(3, 5))
    x = torch.randn(3, 5, requires_grad=True)
    module(x).sum().backward()
    assert torch.equal(x.grad, torch.cos(torch.arange(5.0)).expand(3, 5))
