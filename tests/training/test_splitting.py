"""The same tokens in other batches: one loss, one perplexity, one accuracy, one update."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import losses, metrics, models

VOCAB, PAD = 13, 0


def documents(count, seed=0):
    """Token lists of very different lengths, none of them padding."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCAB, length + 1) for length in rng.integers(1, 9, count)]


def padded(docs, length):
    """`(ids, labels)` of these documents, padded to a length."""
    rows = np.full((len(docs), length + 1), PAD)
    for row, doc in zip(rows, docs, strict=True):
        row[: len(doc)] = doc
    return rows[:, :-1], np.where(rows[:, 1:] == PAD, PAD, rows[:, 1:])


def build(optimizer="sgd", loss=None):
    keras.utils.set_random_seed(1)
    model = models.LanguageModel(
        keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB, name="head")
    )
    model(np.zeros((1, 1), "int32"))
    model.compile(
        optimizer=optimizer,
        loss=loss or losses.MaskedSparseCategoricalCrossentropy(PAD, label_smoothing=0.1),
        metrics=[metrics.Perplexity(PAD), metrics.MaskedTokenAccuracy(1, PAD)],
    )
    return model


def in_batches(docs, size, length=9):
    for start in range(0, len(docs), size):
        yield padded(docs[start : start + size], length)


@given(st.integers(1, 12), st.integers(9, 15))
# XLA compiles every shape.
@settings(max_examples=8 if keras.backend.backend() == "torch" else 2)
def test_evaluation_does_not_depend_on_batches_or_padding(size, length):
    docs = documents(11)
    model = build()
    whole = model.evaluate(*padded(docs, 9), batch_size=11, verbose=0, return_dict=True)
    steps = -(-11 // size)
    split = model.evaluate(in_batches(docs, size, length), steps=steps, verbose=0, return_dict=True)
    assert split == pytest.approx(whole, rel=1e-6)


def sgd(steps=None):
    return keras.optimizers.SGD(0.5, global_clipnorm=0.3, gradient_accumulation_steps=steps)


def train(optimizer, batches, epochs=1, **arguments):
    """Weights and logs after `fit` on a list of batches."""
    model = build(optimizer)
    batches = list(batches)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return batches[index]

    history = model.fit(Batches(), epochs=epochs, verbose=0, shuffle=False, **arguments).history
    return model, model.get_weights(), history


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "make",
    [sgd, lambda steps=None: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=steps)],
    ids=["sgd", "adam"],
)
@pytest.mark.sampled(3)
def test_accumulation_is_one_batch_of_all_tokens_and_a_short_window_counts(make, reduction):
    # 10 documents, 2 a micro-batch, 2 a window: updates of 4, 4 and 2 documents, twice.
    docs = documents(10)
    _, whole, whole_logs = train(make(), in_batches(docs, 4), epochs=2)
    model, split, split_logs = train(make(2), in_batches(docs, 2), epochs=2)
    for ours, theirs in zip(split, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert int(model.optimizer.iterations) == 6
    assert split_logs["loss"] == pytest.approx(whole_logs["loss"], rel=1e-5)


@pytest.mark.backend_free
def test_stock_keras_gets_the_same_window_wrong():
    # What the class of the test above is for: 31 tokens and 1 token do not weigh the same.
    long, short = np.arange(1, 10) % 12 + 1, np.array([5, 9])
    batches = [padded([long] * 4, 9), padded([short], 9)]
    _, exact, _ = train(sgd(2), batches)
    _, whole, _ = train(sgd(), [padded([long] * 4 + [short], 9)])
    np.testing.assert_allclose(exact[0], whole[0], rtol=1e-5, atol=1e-6)

    stock = build()
    plain = keras.Sequential([keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB)])
    plain.build((None, 9))
    plain.set_weights(stock.get_weights())
    plain.compile(
        sgd(2), keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD)
    )
    for batch in batches:
        plain.train_on_batch(*batch)
    assert np.abs(plain.get_weights()[0] - whole[0]).max() > 1e-2


def test_validation_sees_the_short_window_and_saving_keeps_the_accumulation(tmp_path):
    docs = documents(3)
    model, _, history = train(sgd(2), in_batches(docs, 1), validation_data=padded(docs, 9))
    assert history["val_loss"][0] == pytest.approx(
        model.evaluate(*padded(docs, 9), verbose=0)[0], rel=1e-6
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.step.accumulation == 2
    assert again.get_compile_config() == model.get_compile_config()
    again.compile(again.optimizer, again.loss)
    assert again.step.accumulation == 2
    again.compile(again.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert again.optimizer.gradient_accumulation_steps == 2


def test_a_compute_loss_of_ones_own_accumulates_too():
    class Own(models.LanguageModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(y_pred)

    weights = []
    for size, steps in ((4, None), (2, 2)):
        keras.utils.set_random_seed(1)
        model = Own(keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB))
        model(np.zeros((1, 1), "int32"))
        model.compile(
            keras.optimizers.SGD(1.0, gradient_accumulation_steps=steps),
            "masked_sparse_categorical_crossentropy",
        )
        start = model.get_weights()[0]
        model.fit(*padded(documents(4), 9), batch_size=size, verbose=0, shuffle=False)
        weights.append(model.get_weights()[0])
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-5, atol=1e-7)
    assert np.abs(weights[0] - start).max() > 1e-4


def test_a_window_that_an_interruption_left_is_dropped():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    docs = documents(4)
    model = build(sgd(4))
    x, y = padded(docs, 9)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=1, verbose=0, callbacks=[Stop()])
    model.fit(x, y, batch_size=1, verbose=0, shuffle=False)
    _, whole, _ = train(sgd(), in_batches(docs, 4))
    np.testing.assert_allclose(model.get_weights()[0], whole[0], rtol=1e-5, atol=1e-6)
