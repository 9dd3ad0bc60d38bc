"""Accumulation, micro-batches and the gradient norm: one backend has what the others have."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import losses, metrics, models, optimizers

BACKEND = keras.backend.backend()
VOCAB, PAD = 23, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (14, 6))
Y = np.where(RNG.random(X.shape) < 0.4, PAD, RNG.integers(1, VOCAB, X.shape))
Y[4:6] = PAD  # micro-batches, and a batch of one window, in which nothing counts


def build(steps=None, rows=None, loss=None, optimizer=None, **arguments):
    keras.utils.set_random_seed(0)
    model = models.LanguageModel(
        keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB, kernel_regularizer="l2")
    )
    model(X)
    model.compile(
        optimizer or keras.optimizers.SGD(0.5, gradient_accumulation_steps=steps),
        loss or losses.MaskedSparseCategoricalCrossentropy(PAD, label_smoothing=0.1),
        metrics=[metrics.Perplexity()],
        micro_batch_size=rows,
        **arguments,
    )
    return model


def in_float64(weights, windows, reduction="mean", rate=0.5):
    """Weights and mean gradient norm after an update by PyTorch from each window of rows."""
    table, kernel, bias = (
        torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in weights
    )
    norms = []
    for window in windows:
        x, y = torch.tensor(X[window]), torch.tensor(Y[window])
        loss = torch.nn.functional.cross_entropy(
            (table[x] @ kernel + bias).flatten(0, 1),
            y.flatten(),
            ignore_index=PAD,
            label_smoothing=0.1,
            reduction="sum",
        )
        tokens = (y != PAD).sum()
        penalty = 0.01 * kernel.square().sum()
        loss = loss / tokens + penalty if reduction == "mean" else loss + penalty
        gradients = torch.autograd.grad(loss, (table, kernel, bias))
        norms.append(float(torch.sqrt(sum(g.square().sum() for g in gradients))))
        with torch.no_grad():
            for weight, gradient in zip((table, kernel, bias), gradients, strict=True):
                weight -= rate * gradient
    return [t.detach().numpy() for t in (table, kernel, bias)], np.mean(norms)


@pytest.mark.parametrize(("steps", "rows"), [(3, None), (None, 3), (3, 1), (None, "auto")])
@pytest.mark.parametrize("way", ["fit", "fit with logits", "train_on_batch"])
@pytest.mark.sampled(5)
@pytest.mark.quick(5)
def test_any_split_is_one_batch_in_float64(steps, rows, way):
    # Batches of 4, 4, 4 and 2 rows; three make a window, and the short last one counts.
    model = build(steps, rows)
    if way == "fit with logits":
        several = [metrics.MaskedTokenAccuracy(1), metrics.MaskedTokenAccuracy(5)]
        model.compile(model.optimizer, model.loss, metrics=several, micro_batch_size=rows)
    windows = (
        [slice(0, 12), slice(12, 14)]
        if steps == 3
        else [slice(start, min(start + 4, 14)) for start in (0, 4, 8, 12)]
    )
    if way == "train_on_batch":
        # A loop has no end of an epoch: the last window is left open.
        windows = windows[:1] if steps == 3 else windows
    want, norm = in_float64(model.get_weights(), windows)
    if way == "train_on_batch":
        for start in (0, 4, 8, 12):
            model.train_on_batch(X[start : start + 4], Y[start : start + 4])
    else:
        history = model.fit(X, Y, batch_size=4, shuffle=False, verbose=0).history
        assert history["gradient_norm"][0] == pytest.approx(norm, rel=1e-5)
    assert int(model.optimizer.iterations) == len(windows)
    for got, expected in zip(model.get_weights(), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_sum_is_a_sum():
    loss = losses.MaskedSparseCategoricalCrossentropy(PAD, 0.1, reduction="sum")
    model = build(3, None, loss, keras.optimizers.SGD(0.01, gradient_accumulation_steps=3))
    start = model.get_weights()
    model.head.kernel_regularizer = model.head.kernel.regularizer = None
    table, kernel, bias = (torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in start)
    total = torch.nn.functional.cross_entropy(
        (table[torch.tensor(X[:12])] @ kernel + bias).flatten(0, 1),
        torch.tensor(Y[:12]).flatten(),
        ignore_index=PAD,
        label_smoothing=0.1,
        reduction="sum",
    )
    total.backward()
    model.fit(X[:12], Y[:12], batch_size=4, shuffle=False, verbose=0)
    want = start[1] - 0.01 * kernel.grad.numpy()
    np.testing.assert_allclose(model.get_weights()[1], want, rtol=1e-4, atol=1e-6)


def adafactor(learning_rate, **arguments):
    return optimizers.Adafactor(learning_rate, relative_step=False, **arguments)


@pytest.mark.parametrize("make", [optimizers.AdamW, adafactor, keras.optimizers.Adam])
@pytest.mark.sampled(2)
def test_every_optimizer_sees_one_gradient_an_update(make):
    results = []
    for steps, rows, size in ((None, None, 12), (3, None, 4), (None, 4, 12)):
        optimizer = make(1e-2, global_clipnorm=0.5, gradient_accumulation_steps=steps)
        model = build(None, rows, optimizer=optimizer)
        model.fit(X[:12], Y[:12], batch_size=size, epochs=3, shuffle=False, verbose=0)
        assert int(model.optimizer.iterations) == 3
        results.append(model.get_weights())
    for one, several, pieces in zip(*results, strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(pieces, one, rtol=1e-3, atol=1e-5)


def test_the_state_of_a_window_can_be_kept():
    # Two batches of a window, then its third in another model.
    model, other = build(3), build(3)
    batches = [(X[start : start + 4], Y[start : start + 4]) for start in (0, 4, 8)]
    for batch in batches[:2]:
        model.train_on_batch(*batch)
    other.optimizer.build(other.trainable_variables)
    other.train_on_batch(*batches[2])
    other.set_weights(model.get_weights())
    other.step.load_state_dict(model.step.state_dict())
    want, _ = in_float64(model.get_weights(), [slice(0, 12)])
    other.train_on_batch(*batches[2])
    for got, expected in zip(other.get_weights(), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_model_that_was_never_called_accumulates_too():
    start = [RNG.normal(size=shape) * 0.1 for shape in ((VOCAB, 8), (8, VOCAB))]
    table, kernel = (keras.initializers.Constant(w.astype("float32")) for w in start)
    model = models.LanguageModel(
        keras.layers.Embedding(VOCAB, 8, table),
        keras.layers.Dense(VOCAB, kernel_initializer=kernel, kernel_regularizer="l2"),
    )
    model.compile(
        keras.optimizers.SGD(0.5, gradient_accumulation_steps=3),
        losses.MaskedSparseCategoricalCrossentropy(PAD, label_smoothing=0.1),
    )
    model.fit(X[:12], Y[:12], batch_size=4, shuffle=False, verbose=0)
    want, _ = in_float64([*start, np.zeros(VOCAB)], [slice(0, 12)])
    for got, expected in zip(model.get_weights(), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.not_torch
@pytest.mark.not_jax
def test_xla_splits_batches_whose_sizes_the_running_step_knows():
    # XLA refused a loop over pieces of two sizes.
    model = build(None, 3, jit_compile=True)
    want, norm = in_float64(model.get_weights(), [slice(0, 8), slice(8, 14)])
    history = model.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history
    assert history["gradient_norm"][0] == pytest.approx(norm, rel=1e-5)
    for got, expected in zip(model.get_weights(), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.not_torch
@pytest.mark.not_jax
@pytest.mark.parametrize("rows", [None, 3])
def test_xla_makes_keras_metrics_in_the_first_batch(rows):
    model = build(None, rows)
    model.compile(
        *("sgd", losses.MaskedSparseCategoricalCrossentropy()),
        metrics=["sparse_categorical_accuracy"],
        jit_compile=True,
        micro_batch_size=rows,
    )
    table, kernel, bias = model.get_weights()
    want = ((table[X] @ kernel + bias).argmax(-1) == Y).mean()
    assert model.train_on_batch(X, Y)[1] == pytest.approx(want)
