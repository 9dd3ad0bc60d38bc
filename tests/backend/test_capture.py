"""A captured layer gives what the layer gives: numbers, gradients, noise, state and errors."""

import re

import keras
import numpy as np
import pytest
import torch
from keras_llm.backend.torch.capture import Capture

from keras_llm import losses, models

pytestmark = pytest.mark.torch_only

IDS = np.random.default_rng(0).integers(1, 23, (3, 6))


def causal(**sizes):
    return models.CausalTransformer(23, 16, 2, 4, max_length=8, **sizes).backbone


def seq2seq(**sizes):
    return models.Seq2SeqTransformer(23, 16, 2, 4, max_length=8, **sizes).backbone


def embedding():
    """A backbone whose call has no `training`."""
    layer = keras.layers.Embedding(23, 4)
    layer.build()
    return layer, torch.tensor(IDS)


BACKBONES = {
    "embedding": embedding,
    "causal": lambda: (causal(), torch.tensor(IDS)),
    "padded": lambda: (causal(pad_id=0, num_key_value_heads=2), torch.tensor(IDS)),
    "dropout": lambda: (causal(dropout=0.3), torch.tensor(IDS)),
    "bfloat16": lambda: (causal(dtype="mixed_bfloat16"), torch.tensor(IDS)),
    "seq2seq": lambda: (
        seq2seq(),
        {"encoder_ids": torch.tensor(IDS), "decoder_ids": torch.tensor(IDS[:, :4])},
    ),
}


def run(forward, layer, inputs, training):
    """The outputs and the gradients of their squares' sum, from one random state."""
    keras.utils.set_random_seed(3)
    layer.zero_grad()
    outputs = forward(inputs, training=training)
    outputs.square().sum().backward()
    return outputs.detach(), [v.value.grad for v in layer.trainable_variables]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_same_numbers_same_gradients(name, training):
    layer, inputs = BACKBONES[name]()
    capture = Capture(layer)
    want, gradients = run(layer, layer, inputs, training)
    for _ in range(3):
        got, ours = run(capture, layer, inputs, training)
        assert torch.equal(got, want)
        for mine, theirs in zip(ours, gradients, strict=True):
            assert torch.equal(mine, theirs)
    assert capture.reason is None
    assert list(map(bool, capture.graphs.values())) == [True]


def test_weights_may_change_between_calls():
    layer, inputs = BACKBONES["causal"]()
    capture = Capture(layer)
    for _ in range(3):
        for variable in layer.trainable_variables:
            variable.assign(variable * 1.1)
        assert torch.equal(capture(inputs, False), layer(inputs, training=False))


def test_wrong_ids_are_named_by_a_graph_too():
    layer, inputs = BACKBONES["causal"]()
    capture = Capture(layer)
    for _ in range(2):
        capture(inputs, False)
    with pytest.raises(ValueError, match=r"\[0, 23\), the vocabulary. Received: 45"):
        capture(torch.where(inputs == inputs.max(), 45, inputs), False)


def test_state_is_brought_up_to_date():
    plain, captured = (
        keras.Sequential([keras.layers.Embedding(23, 4), keras.layers.BatchNormalization()])
        for _ in range(2)
    )
    for layer in (plain, captured):
        layer.build((None, 6))
    captured.set_weights(plain.get_weights())
    capture, inputs = Capture(captured), torch.tensor(IDS)
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
    capture, inputs = Capture(layer), torch.tensor(IDS)
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
    assert [bool(graph) for graph in model.capture.graphs.values()] == [True]
    model.compile(optimizer="sgd", loss=loss, run_eagerly=True)
    model.fit(IDS, IDS, batch_size=1, verbose=0)
    assert model.capture is None


def test_a_setting_changed_between_fits_is_heeded():
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential([keras.layers.Embedding(23, 4), keras.layers.Dropout(0.9)])
    model = models.LanguageModel(backbone, keras.layers.Dense(23))
    model(IDS)
    model.compile(
        optimizer=keras.optimizers.SGD(0.0), loss="masked_sparse_categorical_crossentropy"
    )
    arguments = {"batch_size": 1, "verbose": 0, "epochs": 2}
    noisy = model.fit(IDS, IDS, **arguments).history["loss"]
    assert noisy[0] != pytest.approx(noisy[1], rel=1e-6)
    backbone.layers[-1].rate = 0.0
    plain = model.fit(IDS, IDS, **arguments).history["loss"]
    assert plain[0] == pytest.approx(plain[1], rel=1e-6)
    assert plain[0] != pytest.approx(noisy[1], rel=1e-6)
