"""A model whose `compute_loss` is the user's own: what is logged is what is minimised."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_llm import losses, metrics, models

VOCAB, PAD = 23, 0
RNG = np.random.default_rng(0)
X = RNG.integers(1, VOCAB, (9, 6))
Y = np.where(np.arange(6) < RNG.integers(1, 7, (9, 1)), RNG.integers(1, VOCAB, (9, 6)), PAD)


class Adds(models.LanguageModel):
    """Something beside the loss of `compile`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + ops.mean(ops.square(y_pred))


class Twice(models.LanguageModel):
    """The mean of two losses of a batch, as in R-Drop."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        first = super().compute_loss(x, y, y_pred, sample_weight, training)
        second = super().compute_loss(x, y, y_pred * 3.0, sample_weight, training)
        return (first + second) / 2.0


class Own(models.LanguageModel):
    """Nothing of the loss of `compile`."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred))


def nll_sum(logits, labels):
    """The sum of -log p(label) over the labels that are not padding."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    each = np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    return -each[labels != PAD].sum()


def of_a_batch(kind, logits, labels, divisor):
    """What the `compute_loss` of this kind returns, in float64."""
    square = (logits**2).mean()
    if kind is Own:
        return square
    loss = nll_sum(logits, labels) / divisor
    if kind is Adds:
        return loss + square
    return (loss + nll_sum(logits * 3.0, labels) / divisor) / 2.0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", [Adds, Twice, Own])
@pytest.mark.sampled(2)
def test_the_logged_loss_is_what_compute_loss_returned(kind, reduction):
    keras.utils.set_random_seed(0)
    model = kind(keras.layers.Embedding(VOCAB, 8, "normal"), keras.layers.Dense(VOCAB))
    model.compile(
        keras.optimizers.SGD(0.0),
        losses.MaskedSparseCategoricalCrossentropy(PAD, reduction=reduction),
        metrics=[metrics.Perplexity()],
    )
    data = {"x": X, "y": Y, "batch_size": 4, "verbose": 0}
    history = model.fit(**data, shuffle=False, validation_data=(X, Y)).history
    history["evaluated"] = [model.evaluate(**data, return_dict=True)["loss"]]

    logits = ops.convert_to_numpy(model(X)).astype("float64")
    tokens = (Y != PAD).sum()
    total = 0.0
    for i in range(0, 9, 4):
        divisor = (Y[i : i + 4] != PAD).sum() if reduction == "mean" else 1
        total += of_a_batch(kind, logits[i : i + 4], Y[i : i + 4], divisor) * divisor
    for name in ("loss", "val_loss", "evaluated"):
        assert history[name] == pytest.approx([total / tokens], rel=1e-6)
    perplexity = np.exp(nll_sum(logits, Y) / tokens)
    assert history["perplexity"] == pytest.approx([perplexity], rel=1e-6)
    assert history["val_perplexity"] == pytest.approx([perplexity], rel=1e-6)
    assert model.step.tokens_per_update == tokens / 3
