"""A captured layer gives what the layer gives: numbers, gradients, noise, state and errors."""

import contextlib
import re

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, models
from keras_llm.training.torch.captured_layer import CapturedLayer
from keras_llm.training.torch.compile_policy import CompilePolicy
from tests.training.backbones import BACKBONES, IDS, run

pytestmark = pytest.mark.torch_only


def captured_layer(layer):
    return CapturedLayer(layer, CompilePolicy(False))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.quick(3)
def test_same_numbers_same_gradients(name, training):
    layer, inputs = BACKBONES[name]()
    capture = captured_layer(layer)
    want, gradients = run(layer, layer, inputs, training)
    for _ in range(3):
        got, ours = run(capture, layer, inputs, training)
        assert torch.equal(got, want)
        for mine, theirs in zip(ours, gradients, strict=True):
            assert torch.equal(mine, theirs)
    assert capture.reason == ""
    assert list(map(bool, capture.graphs.values())) == [True]


def test_weights_may_change_between_calls():
    layer, inputs = BACKBONES["causal"]()
    capture = captured_layer(layer)
    for _ in range(3):
        for variable in layer.trainable_variables:
            variable.assign(variable * 1.1)
        assert torch.equal(capture(inputs, False), layer(inputs, training=False))


def test_wrong_ids_are_named_by_a_graph_too():
    layer, inputs = BACKBONES["causal"]()
    capture = captured_layer(layer)
    for _ in range(2):
        capture(inputs, False)
    with pytest.raises(ValueError, match=r"\[0, 23\), the vocabulary. Received: 45"):
        capture(torch.where(inputs == inputs.max(), 45, inputs), False)


def test_tensors_of_other_names_are_other_inputs():
    """Also where their order by name is that of a graph's inputs, or the opposite."""
    model = models.Seq2SeqTransformer(23, 8, 1, 2, max_length=8)
    ids, target = torch.tensor(IDS[:, :5]), torch.tensor(IDS[:, 1:])
    capture = captured_layer(model.backbone)
    for _ in range(3):
        capture({"encoder_ids": ids, "decoder_ids": target}, False)
    for names in (("source", "target"), ("decoder_ids", "source")):
        with pytest.raises(ValueError, match="encoder_ids"):
            capture(dict(zip(names, (ids, target), strict=True)), False)


def test_state_is_brought_up_to_date():
    plain, captured = (
        keras.Sequential([keras.layers.Embedding(23, 4), keras.layers.BatchNormalization()])
        for _ in range(2)
    )
    for layer in (plain, captured):
        layer.build((None, 6))
    captured.set_weights(plain.get_weights())
    capture, inputs = captured_layer(captured), torch.tensor(IDS)
    for _ in range(4):
        torch.testing.assert_close(capture(inputs, True), plain(inputs, training=True))
    assert any(capture.graphs.values())
    for mine, theirs in zip(captured.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


class Annealed(keras.layers.Layer):
    """A layer of a user's own, with a number that changes while training."""

    factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: [keras.layers.Embedding(23, 4), Annealed()], "Annealed is not a layer of keras"),
        (lambda: [keras.layers.Embedding(23, 4, mask_zero=True)], "mask"),
        (lambda: [keras.layers.Embedding(23, 4), keras.layers.ActivityRegularization(1.0)], "loss"),
        (
            lambda: [keras.layers.Embedding(23, 4), keras.layers.Dropout(0.5, seed=1)],
            "Generator|random numbers|Data",
        ),
    ],
    ids=["user's", "mask", "loss", "keras dropout"],
)
@pytest.mark.filterwarnings("ignore:.*layer by layer")
def test_what_cannot_be_trusted_is_called_as_it_is(make, reason):
    layer = keras.Sequential(make())
    layer.build((None, 6))
    capture, inputs = captured_layer(layer), torch.tensor(IDS)
    for _ in range(3):
        keras.utils.set_random_seed(0)
        got = capture(inputs, True)
        keras.utils.set_random_seed(0)
        assert got.shape == layer(inputs, training=True).shape
    assert not any(capture.graphs.values())
    assert re.search(reason, capture.reason)
    if isinstance(layer.layers[-1], Annealed):
        layer.layers[-1].factor = 3.0
        torch.testing.assert_close(capture(inputs, True), layer.layers[0](inputs) * 3.0)


def test_fit_captures_and_run_eagerly_does_not():
    model = models.CausalTransformer(23, 16, 1, 2, max_length=8)
    loss = losses.MaskedSparseCategoricalCrossentropy(0)
    model.compile(optimizer="sgd", loss=loss)
    model.fit(IDS, IDS, batch_size=1, verbose=0)
    assert [bool(graph) for graph in model.step.graphs.captured.graphs.values()] == [True]
    model.compile(optimizer="sgd", loss=loss, run_eagerly=True)
    model.fit(IDS, IDS, batch_size=1, verbose=0)
    assert model.step.graphs.captured is None


def bytes_kept_for_backward(scope, **arguments):
    """What a batch keeps, from the third on, while loss and head are in one pass."""
    with scope:
        model = models.CausalTransformer(23, 16, 4, 2, max_length=8)
        model(IDS)
    loss, sizes = losses.MaskedSparseCategoricalCrossentropy(0), {}
    model.compile("sgd", loss, **arguments)

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(2):
        model.train_on_batch(IDS, IDS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train_on_batch(IDS, IDS)
    return sum(sizes.values())


@pytest.mark.filterwarnings("ignore::keras_llm.checks.sanity_warning.SanityWarning")
def test_what_is_computed_again_in_the_backward_pass_is_not_kept():
    kept = bytes_kept_for_backward(keras.RematScope(mode="full"))
    assert kept == bytes_kept_for_backward(keras.RematScope(mode="full"), run_eagerly=True)
    assert kept < bytes_kept_for_backward(contextlib.nullcontext()) / 10
