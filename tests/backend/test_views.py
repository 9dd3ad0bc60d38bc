"""A graph with fewer views gives the same numbers, bit for bit."""

import keras
import pytest
import torch

from keras_llm.backend.torch.views import VIEWS, merge_views
from keras_llm.training.torch import captured_graph, captured_layer
from keras_llm.training.torch.compile_policy import CompilePolicy
from tests.training.backbones import BACKBONES, run

pytestmark = pytest.mark.torch_only


def views(graph):
    """What is viewed as what."""
    nodes = [node for node in graph.in_use.module.graph.nodes if node.target in VIEWS]
    return [(node.args[0], tuple(node.args[1])) for node in nodes]


@pytest.mark.parametrize("name", ["causal", "padded", "dropout", "bfloat16", "seq2seq"])
@pytest.mark.quick(3)
def test_same_numbers_with_fewer_views(name, monkeypatch):
    layer, inputs = BACKBONES[name]()
    with monkeypatch.context() as patch:
        patch.setattr(captured_graph, "merge_views", lambda module: None)
        graph = captured_layer.Graph(layer, inputs, True)

    def forward(inputs, training):
        return graph(keras.tree.flatten(inputs), CompilePolicy(False))

    before = len(views(graph))
    want, gradients = run(forward, layer, inputs, True)
    merge_views(graph.in_use.module)
    got, ours = run(forward, layer, inputs, True)
    assert torch.equal(got, want)
    for mine, theirs in zip(ours, gradients, strict=True):
        assert torch.equal(mine, theirs)

    after = views(graph)
    assert len(after) == len(set(after)) < 0.7 * before
    assert not any(source.target in VIEWS for source, _ in after)
