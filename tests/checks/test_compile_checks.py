"""Mistakes that the arguments of `compile` show."""

import keras
import pytest

from keras_llm import losses, metrics, models, optimizers, schedules
from tests.checks.setups import FULL, LENGTH, PAD, VOCAB, causal, compiled, of_fit, only, sanity

pytestmark = pytest.mark.backend_free


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "optimizer, says",
    [
        (optimizers.AdamW(1.0), "The learning rate 1 is far from usual"),
        (optimizers.AdamW(1e-8), "The learning rate 1e-08 is far from usual"),
        (keras.optimizers.Adam(3.0), "The learning rate 3 is far from usual"),
        (keras.optimizers.Lion(0.1), "The learning rate 0.1 is far from usual"),
        (optimizers.AdamW(schedules.WarmupCosineDecay(0.5, 10, 100)), "The learning rate 0.5"),
        (keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.0, 9, 0.0, None, 1.0, 3)),
         "The learning rate 1 is"),
        (optimizers.Adafactor(1.0, relative_step=False, warmup_init=False), "The learning rate 1 "),
    ],
)  # fmt: skip
@pytest.mark.sampled(3)
def test_a_learning_rate_far_from_all_others(optimizer, says):
    found = sanity(lambda: compiled(causal(), optimizer=optimizer))
    only(found, says, "4_adamw_and_adafactor")


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.AdamW(1e-2),
        optimizers.AdamW(2e-5),
        optimizers.AdamW(0.0),
        optimizers.AdamW(schedules.WarmupLinearDecay(5e-5, 500, 10_000)),
        optimizers.Adafactor(None, relative_step=True, scale_parameter=True, warmup_init=True),
        optimizers.Adafactor(1e-3, relative_step=False, warmup_init=False),
        keras.optimizers.SGD(1.0),
        "rmsprop",
    ],
)
def test_a_usual_learning_rate(optimizer):
    assert not sanity(lambda: compiled(causal(), optimizer=optimizer))


@pytest.mark.parametrize(
    "loss",
    [
        losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False),
        keras.losses.SparseCategoricalCrossentropy(),
        "sparse_categorical_crossentropy",
    ],
)
def test_from_logits_forgotten(loss):
    found = sanity(lambda: compiled(causal(), loss))
    only(found, "The model returns logits", "2_cross_entropy_and_masking")


@pytest.mark.parametrize(
    "head",
    [
        keras.layers.Dense(VOCAB, activation="softmax"),
        keras.Sequential([keras.layers.Dense(VOCAB), keras.layers.Softmax()]),
    ],
)
def test_a_softmax_in_the_head(head):
    def model():
        return models.LanguageModel(keras.layers.Embedding(VOCAB, 8), head)

    found = sanity(lambda: compiled(model()))
    only(found, "The model returns probabilities", "2_cross_entropy_and_masking")
    right = losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False)
    assert not sanity(lambda: compiled(model(), right))
    assert not of_fit(compiled(model(), right), FULL[:, :LENGTH], FULL[:, 1:-1])


def stock_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)


@pytest.mark.parametrize(
    "metric, says, loss",
    [
        (metrics.Perplexity(ignore_index=-100), "write Perplexity(ignore_index=0)", None),
        (metrics.Perplexity(), "write Perplexity(ignore_index=0)", stock_loss()),
        ("accuracy", "but the metric 'accuracy' counts it", None),
        ("accuracy", "but the metric 'accuracy' counts it", stock_loss()),
    ],
)
def test_a_metric_that_counts_what_the_loss_ignores(metric, says, loss):
    found = sanity(lambda: compiled(causal(), loss, metrics=[metric, metric]))
    only(found, "The loss ignores the label 0, but the metric", "2_cross_entropy_and_masking")
    assert says in found[0]


@pytest.mark.parametrize("metric", [metrics.Perplexity(), metrics.Perplexity(ignore_index=PAD)])
def test_a_metric_that_counts_what_the_loss_counts(metric):
    assert not sanity(lambda: compiled(causal(), metrics=[metric]))
    loss = losses.MaskedSparseCategoricalCrossentropy()
    assert not sanity(lambda: compiled(causal(), loss, metrics=["accuracy"]))
