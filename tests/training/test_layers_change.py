"""Layers that change after `fit`, or in the middle of it: what is trained and computed follows."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models, optimizers
from keras_llm.training.torch import captured_layer

BACKEND = keras.backend.backend()
VOCAB = 31
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (8, 6))
Y = RNG.integers(1, VOCAB, (8, 6))


def build(cls=models.CausalTransformer, rate=0.0, **arguments):
    keras.utils.set_random_seed(0)
    model = cls(VOCAB, 16, 2, 2, max_length=8, tie_embeddings=False, dropout=rate)
    model.compile(
        keras.optimizers.SGD(0.5),
        losses.MaskedSparseCategoricalCrossentropy(),
        metrics=[metrics.Perplexity()],
        **arguments,
    )
    return model


def by_logits(model):
    """The loss that NumPy finds in float64 from the model's logits."""
    logits = keras.ops.convert_to_numpy(model(X, training=False)).astype("float64")
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    return nll.mean()


def evaluated(model):
    return model.evaluate(X, Y, batch_size=4, verbose=0, return_dict=True)["loss"]


def quantize(model):
    for block in model.backbone.blocks:
        for part in (block.feed_forward.up, block.feed_forward.gate, block.feed_forward.down):
            part.quantize("int8")


def add_lora(model):
    up = model.backbone.blocks[0].feed_forward.up
    up.enable_lora(2)
    up.lora_kernel_b.assign(np.full(up.lora_kernel_b.shape, 3.0))


def change_a_setting(model):
    model.backbone.norm.epsilon = 500.0


def replace_a_layer(model):
    model.backbone.blocks[1] = model.backbone.blocks[0]


def register_a_hook(model):
    model.backbone.norm.register_forward_hook(lambda layer, inputs, output: output * 3.0)


@pytest.mark.torch_only
@pytest.mark.parametrize(
    "change", [quantize, add_lora, change_a_setting, replace_a_layer, register_a_hook]
)
@pytest.mark.quick(4)
def test_a_graph_ends_with_the_layers_that_it_was_made_from(change):
    model = build()
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    # Large weights, so that a quarter of a per cent shows.
    model.set_weights([w * 4 for w in model.get_weights()])
    before = evaluated(model)
    assert model.step.graphs.captured.replayed
    change(model)
    assert evaluated(model) == pytest.approx(by_logits(model), rel=1e-5)
    assert abs(evaluated(model) - before) > 1e-3


@pytest.mark.torch_only
def test_a_graph_lives_as_long_as_its_layers(monkeypatch):
    made, graph = [], captured_layer.Graph
    monkeypatch.setattr(captured_layer, "Graph", lambda *a: made.append(1) or graph(*a))
    model = build(rate=0.1)
    for _ in range(3):
        model.fit(X, Y, batch_size=4, verbose=0)
        model.fit(X, Y, batch_size=4, verbose=0, validation_data=(X, Y))
        model.train_on_batch(X[:4], Y[:4])
        model.test_on_batch(X[:4], Y[:4])
        model.predict(X, verbose=0)
        model.generate([1, 2], max_new_tokens=2)
    assert len(made) == 2  # of training and of evaluation


@pytest.mark.torch_only
def test_a_setting_that_a_callback_changes_between_two_batches_is_seen():
    class Sharper(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.backbone.norm.epsilon = 1e-6 if batch < 3 else 50.0

    histories = []
    for eager in (False, True):
        model = build(run_eagerly=eager)
        history = model.fit(
            X, Y, batch_size=1, epochs=2, shuffle=False, verbose=0, callbacks=[Sharper()]
        )
        histories.append(history.history["loss"])
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)


def quantized_head():
    keras.utils.set_random_seed(0)
    model = models.LanguageModel(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))
    model(X)
    model.head.set_weights([w * 20 for w in model.head.get_weights()])
    model.head.quantize("int8")
    return model


def test_a_quantised_head_is_not_read_as_its_matrix():
    model = quantized_head()
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    assert "quantised" in model.step.why_logits()
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(by_logits(model), rel=1e-4)


class Turns(keras.callbacks.Callback):
    """Freezes and thaws the first block, from one batch or epoch to the next."""

    def __init__(self, by):
        super().__init__()
        self.by, self.moved = by, []

    def turn(self, number):
        self.model.backbone.blocks[0].trainable = number % 2 == 1

    def on_epoch_begin(self, epoch, logs=None):
        if self.by == "epoch":
            self.turn(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.by == "batch":
            self.turn(batch)

    def on_train_batch_end(self, batch, logs=None):
        if self.by == "batch":
            self.model.backbone.blocks[1].trainable = batch % 2 == 1


@pytest.mark.parametrize("by", ["epoch", "batch"])
@pytest.mark.sampled(2)
@pytest.mark.quick(2)
def test_what_is_trained_is_what_is_trainable_when_a_batch_is_taken(by):
    # Two batches in one epoch, or two epochs of one batch: frozen at the first, thawed at the next.
    model, twin = build(), build()
    size = 8 if by == "epoch" else 4
    epochs = 2 if by == "epoch" else 1
    model.fit(X, Y, batch_size=size, epochs=epochs, shuffle=False, verbose=0, callbacks=[Turns(by)])
    # By hand: steps of all, after which what was frozen gets its values back.
    for number in range(2):
        frozen = [id(v) for v in twin.backbone.blocks[0].variables] if number == 0 else []
        if by == "batch" and number == 1:
            frozen = [id(v) for v in twin.backbone.blocks[1].variables]
        rows = slice(0, 8) if by == "epoch" else slice(4 * number, 4 * number + 4)
        before = {id(v): keras.ops.convert_to_numpy(v) for v in twin.variables}
        twin.train_on_batch(X[rows], Y[rows])
        for variable in twin.variables:
            if id(variable) in frozen:
                variable.assign(before[id(variable)])
    for got, want in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    start = build().backbone.blocks[0].get_weights()
    moved = [
        np.abs(a - b).max()
        for a, b in zip(model.backbone.blocks[0].get_weights(), start, strict=True)
    ]
    assert max(moved) > 1e-4


def test_two_frozen_sets_of_one_shape_are_two_functions():
    # JAX caches compiled functions by shapes: block 0 frozen looks like block 1 frozen.
    model = build()
    model.train_on_batch(X, Y)
    for block, other in ((0, 1), (1, 0)):
        model.backbone.blocks[block].trainable = False
        model.backbone.blocks[other].trainable = True
        before = [b.get_weights() for b in model.backbone.blocks]
        model.train_on_batch(X, Y)
        after = [b.get_weights() for b in model.backbone.blocks]
        for a, b in zip(before[block], after[block], strict=True):
            np.testing.assert_array_equal(a, b)
        assert any(
            np.abs(a - b).max() > 1e-6 for a, b in zip(before[other], after[other], strict=True)
        )
        assert model.test_on_batch(X, Y)[0] == pytest.approx(by_logits(model), rel=1e-5)


@pytest.mark.torch_only
def test_reasons_for_logits_leave_the_layers_their_graph():
    token_bytes = np.ones(VOCAB, int)
    for arguments in (
        {"metrics": [metrics.MaskedTokenAccuracy(1), metrics.MaskedTokenAccuracy(5)]},
        {"metrics": ["accuracy", metrics.BitsPerByte(token_bytes)]},
        {"loss": losses.MaskedKLDivergence()},
    ):
        model = build()
        loss = arguments.pop("loss", losses.MaskedSparseCategoricalCrossentropy())
        y = np.eye(VOCAB, dtype="float32")[Y] if "KL" in type(loss).__name__ else Y
        model.compile("sgd", loss, **arguments)
        model.fit(X, y, batch_size=4, epochs=2, verbose=0)
        assert model.step.why_logits()
        assert model.step.graphs.captured.replayed


@pytest.mark.torch_only
def test_a_window_does_not_keep_the_gradient_of_what_was_frozen_in_it():
    class FreezeLast(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.backbone.blocks[0].trainable = batch != 1

    model = build()
    model.compile(
        keras.optimizers.SGD(0.5, gradient_accumulation_steps=2),
        losses.MaskedSparseCategoricalCrossentropy(),
    )
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[FreezeLast()])
    assert all(v.value.grad is None for v in model.variables)


@pytest.mark.torch_only
def test_a_second_backward_pass_is_an_error_with_a_way_out():
    model = build()
    passed = model.step.forward(torch.tensor(X), torch.tensor(Y), None, training=True)
    passed.objective.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"can be differentiated only once.*model\(x\)"):
        passed.objective.backward()


@pytest.mark.torch_only
def test_a_layer_that_cannot_be_traced_says_why():
    @keras.saving.register_keras_serializable(package="keras_llm_tests")
    class DependsOnValues(keras.layers.Layer):
        def call(self, x):
            return x * int((x > 0).sum())

    DependsOnValues.__module__ = "keras.tests"
    model = models.LanguageModel(
        keras.Sequential([keras.layers.Embedding(VOCAB, 4), DependsOnValues()]),
        keras.layers.Dense(VOCAB),
    )
    model.compile("sgd", losses.MaskedSparseCategoricalCrossentropy())
    with pytest.warns(UserWarning, match=r"could not be traced\. \w+: \w"):
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    reason = model.step.describe().why_layers
    assert reason.startswith("no graph: ") and not reason.rstrip().endswith(":")


@pytest.mark.backend_free
def test_optimizers_of_ours_take_part():
    model = build()
    model.compile(optimizers.AdamW(1e-2), losses.MaskedSparseCategoricalCrossentropy())
    model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[Turns("epoch")])
    assert int(model.optimizer.iterations) == 4
