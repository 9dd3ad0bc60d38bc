"""When the loss and the backward pass are in the graph of the layers, and when not.

That the numbers are the same is tested in test_one_pass.py.
"""

import functools
import warnings

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, models, optimizers
from keras_llm.training.torch import compile_policy, pass_graph
from tests import reference

pytestmark = pytest.mark.torch_only

VOCAB = 13
X, Y = np.random.default_rng(0).integers(1, VOCAB, (2, 4, 5))


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """What is compiled is tested in test_one_pass.py; here, what is in the graph."""
    monkeypatch.setattr(compile_policy, "compiled", lambda module: module)


def build(**arguments):
    arguments = {"jit_compile": True} | arguments
    model = models.LanguageModel(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))
    model(X)
    loss = losses.MaskedSparseCategoricalCrossentropy(0)
    model.compile(optimizer=optimizers.AdamW(1e-2), loss=loss, **arguments)
    return model


def graphs_after(model, batches=3, **arguments):
    for _ in range(batches):
        model.train_on_batch(X, Y, **arguments)
    return (
        [] if model.step.graphs.passes is None else list(model.step.graphs.passes.graphs.values())
    )


def test_one_graph_for_each_shape():
    model = build()
    for length in (5, 4, 5, 4, 5):
        model.train_on_batch(X[:, :length], Y[:, :length])
    graphs = list(model.step.graphs.passes.graphs.values())
    assert [graph.shape for graph in graphs] == [(4, 5, VOCAB), (4, 4, VOCAB)]


@pytest.mark.filterwarnings("ignore::keras_llm.checks.sanity_warning.SanityWarning")
@pytest.mark.parametrize(
    "arguments",
    [
        {"run_eagerly": True, "jit_compile": False},
        {"metrics": ["accuracy"]},
        {"jit_compile": "auto"},
        {"jit_compile": False},
    ],
)
def test_none_where_it_is_not_compiled_or_logits_are_needed(arguments):
    assert not any(graphs_after(build(**arguments)))


def test_none_where_there_are_many_logits(monkeypatch):
    monkeypatch.setattr(pass_graph, "MAX_LOGITS", X.size * VOCAB - 1)
    assert graphs_after(build()) == [None]
    monkeypatch.setattr(pass_graph, "MAX_LOGITS", X.size * VOCAB)
    assert all(graphs_after(build()))


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.3, 0.0), (0.0, 0.1)])
def test_settings_of_the_loss_may_change_between_batches(smoothing, z_loss):
    model = build()
    assert all(graphs_after(model))
    model.loss.label_smoothing, model.loss.z_loss = smoothing, z_loss
    logits = torch.tensor(model.predict(X, verbose=0), dtype=torch.float64).reshape(-1, VOCAB)
    truth = reference.crossentropy(logits, torch.tensor(Y).reshape(-1), smoothing, z_loss).mean()
    model.reset_metrics()
    assert model.train_on_batch(X, Y) == pytest.approx(float(truth), rel=1e-5)


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_sees_every_gradient(hook):
    model, seen = build(), []
    graphs_after(model)
    tensor = model.trainable_variables[0].value
    handle = getattr(tensor, hook)(lambda given: seen.append(given.shape))
    graphs_after(model)
    assert seen == 3 * [tensor.shape]
    handle.remove()
    graphs_after(model)
    assert len(seen) == 3 and all(model.step.graphs.passes.graphs.values())


# PyTorch tells by a warning where it was.
@pytest.mark.filterwarnings("ignore:.*[Aa]nomaly")
def test_anomaly_detection_sees_the_backward_pass():
    model = build()
    graphs_after(model)
    model.trainable_variables[0].assign(np.full(model.trainable_variables[0].shape, np.nan))
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        warnings.catch_warnings(),
        pytest.raises(RuntimeError, match="nan"),
    ):
        warnings.simplefilter("ignore")
        model.train_on_batch(X, Y)


def test_what_a_row_of_weight_0_holds_counts_for_nothing():
    weights = np.ones(X.shape)
    weights[1] = 0.0
    model, alone = build(), build()
    alone.set_weights(model.get_weights())
    rows = [0, 2, 3]
    for _ in range(4):
        ids = X.copy()
        ids[1] = np.random.default_rng(1).integers(1, VOCAB, X.shape[1])
        model.train_on_batch(ids, Y, sample_weight=weights)
        alone.train_on_batch(X[rows], Y[rows])
    assert all(model.step.graphs.passes.graphs.values())
    for mine, theirs in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_compiled_graph_takes_any_number_of_thawed_layers(monkeypatch):
    # PyTorch's compiler compiles a graph at most 8 times. Kernels are not what it counts.
    traced = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(compile_policy, "compiled", traced)
    monkeypatch.setattr(pass_graph, "MAX_LOGITS", 0)
    dense = [keras.layers.Dense(8) for _ in range(11)]
    model = models.LanguageModel(
        keras.Sequential([keras.layers.Embedding(VOCAB, 8), *dense]), keras.layers.Dense(VOCAB)
    )
    loss = losses.MaskedSparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=True)
    model(X)
    model.optimizer.build(model.trainable_variables)
    weights = [torch.tensor(w, dtype=torch.float64) for w in model.get_weights()]
    model.backbone.trainable = False
    trained = weights[-2:]
    for number in range(len(dense), 0, -1):
        dense[number - 1].trainable = True
        trained = weights[2 * number - 1 : 2 * number + 1] + trained
        for tensor in trained:
            tensor.requires_grad_()
        for _ in range(3):
            hidden = torch.nn.functional.embedding(torch.tensor(X), weights[0])
            for kernel, bias in zip(weights[1::2], weights[2::2], strict=True):
                hidden = hidden @ kernel + bias
            truth = torch.nn.functional.cross_entropy(hidden.flatten(0, 1), torch.tensor(Y).ravel())
            with torch.no_grad():
                for tensor, change in zip(
                    trained, torch.autograd.grad(truth, trained), strict=True
                ):
                    tensor -= 0.1 * change
            model.reset_metrics()
            assert model.train_on_batch(X, Y) == pytest.approx(truth.item(), rel=1e-4)
    assert model.step.graphs.captured.replayed
    for got, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(got, want.detach(), rtol=1e-3, atol=1e-5)
