"""The first step of a fit is looked at, once, and nothing else changes."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_llm import data, losses, models
from keras_llm.checks.first_batch import FirstBatch, read
from keras_llm.training.arrays import as_arrays
from tests.checks.setups import (
    FULL,
    LENGTH,
    PAD,
    causal,
    compiled,
    keras_dataset,
    of_fit,
    only,
    small,
    unbuilt,
)


class Softmaxed(models.LanguageModel):
    def call(self, inputs, training=None):
        return keras.ops.softmax(super().call(inputs, training=training))


# A compiled graph, as JAX and TensorFlow have, shows no predictions.
@pytest.mark.parametrize("run_eagerly", [pytest.param(False, marks=pytest.mark.torch_only), True])
def test_predictions_are_not_what_the_loss_expects(run_eagerly):
    x, y = FULL[:, :LENGTH], FULL[:, 1:-1]
    probabilities = losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False)
    model = compiled(small(Softmaxed), run_eagerly=run_eagerly)
    only(of_fit(model, x, y), "The model returns probabilities", "2_cross_entropy_and_masking")
    assert not of_fit(compiled(small(Softmaxed), probabilities, run_eagerly=run_eagerly), x, y)


def test_logits_of_a_head_that_compile_had_not_built():
    probabilities = losses.MaskedSparseCategoricalCrossentropy(PAD, from_logits=False)
    # Nor is the first loss told of, which is large for the same reason.
    found = of_fit(compiled(unbuilt(), probabilities), FULL[:, :LENGTH], FULL[:, 1:-1])
    only(found, "The model returns logits", "2_cross_entropy_and_masking")


def test_a_first_loss_that_is_too_large():
    model = compiled(causal(tie_embeddings=False))
    model.head.kernel.assign(model.head.kernel * 1e3)
    x, y = FULL[:, :LENGTH], FULL[:, 1:-1]
    only(of_fit(model, x, y), "The first loss is", "3_perplexity")
    # Not the first update any more.
    model.head.kernel.assign(model.head.kernel * 1e3)
    assert not of_fit(model, x, y)


def test_numbers_random_state_and_batches_are_the_same_without_a_look(monkeypatch):
    def trained():
        keras.utils.set_random_seed(3)
        model = compiled(causal(dropout=0.5))
        batches = keras_dataset(FULL[:, :LENGTH], FULL[:, 1:-1])
        model.fit(batches, epochs=2, verbose=0)
        return model.get_weights(), float(keras.random.uniform(()))

    weights, draw = trained()

    def without_a_look(self, step, *state_and_data):
        return step(*state_and_data)

    monkeypatch.setattr(FirstBatch, "run", without_a_look)
    monkeypatch.setattr(FirstBatch, "on_epoch_begin", lambda *_: None)
    others, other_draw = trained()
    assert draw == other_draw
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.torch_only
def test_a_data_loader_hands_out_no_batch_more():
    tokenizer = data.train_tokenizer(["ab cd ef gh"] * 50, unit="character")
    texts = ["ab cd ef gh"] * 50
    loader = data.causal_lm(texts, tokenizer, seq_len=LENGTH, batch_size=8)
    model = models.CausalTransformer(tokenizer.vocab_size, 16, 1, 2, max_length=LENGTH)
    seen = []
    model = compiled(model, losses.MaskedSparseCategoricalCrossentropy(tokenizer.pad_id))
    step = model.train_step
    model.train_step = lambda batch: seen.append(batch) or step(batch)
    model.fit(loader, verbose=0)
    assert len(seen) == len(loader)


def test_an_interrupted_fit_leaves_nothing_behind():
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise RuntimeError("no")

    model = compiled(causal())
    x, y = FULL[:, :LENGTH], FULL[:, :LENGTH]
    with pytest.raises(RuntimeError):
        model.fit(x, y, verbose=0, callbacks=[Stop()])
    for _ in range(2):
        only(of_fit(model, x, y), "The labels are not shifted", "6_the_training_loop")


def test_an_own_compute_loss_is_not_checked():
    class Own(models.LanguageModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(y_pred)

    x = FULL[:, :LENGTH]
    assert not of_fit(compiled(small(Own)), x, np.zeros_like(x))


def test_a_batch_of_a_compiled_function():
    model = compiled(small(), run_eagerly=False)
    found = of_fit(model, FULL[:, :LENGTH], np.full((len(FULL), LENGTH), PAD))
    only(found, "No label of the first batch counts", "2_cross_entropy_and_masking")


def test_an_epoch_of_one_batch_is_looked_at_too():
    model, x = compiled(small()), FULL[:, :LENGTH]
    assert len(of_fit(model, x, np.full_like(x, PAD), batch_size=8)) == 1
    assert len(of_fit(model, x, np.full_like(x, PAD), batch_size=8, epochs=1)) == 1


DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
WEIGHTS = [None, [1, 0, 2], [[1], [0], [2]], [[1, 0, 1, 1]] * 3, [[[1], [0], [1], [0]]] * 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignore_index", [-100, 0, 156, 300])
@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.sampled(5)
def test_the_labels_that_count(dtype, ignore_index, is_tensor):
    minus_100 = -100 if np.dtype(dtype).kind == "i" else 5
    labels = np.array([[156, 0, 3, 44], [1, 0, 0, 2], [156, 7, 300, minus_100]]).astype(dtype)
    # As fit does: PyTorch has no uint64.
    labels = as_arrays(labels)
    for weights in WEIGHTS:
        expected = np.array([[int(label) != ignore_index for label in row] for row in labels])
        if weights is not None:
            weights = np.array(weights, "float32")
            expected &= weights.reshape(3, -1) != 0
        batch = labels, labels[..., None], weights
        if is_tensor:
            batch = [None if a is None else keras.ops.convert_to_tensor(a) for a in batch]
        loss = losses.MaskedSparseCategoricalCrossentropy(ignore_index)
        unpack = keras.utils.unpack_x_y_sample_weight
        backbone = SimpleNamespace(is_causal=True)
        model = SimpleNamespace(loss=loss, backbone=backbone, unpack=unpack)
        found = read(model, batch)
        np.testing.assert_array_equal(found.counts, expected)
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_array_equal(found.ids, labels)
