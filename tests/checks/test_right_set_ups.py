"""A right set-up is left in peace, also one that looks like a mistake."""

from pydoc_data.topics import topics

import keras
import numpy as np
import pytest

from keras_llm import data, losses, models, optimizers
from tests.checks.setups import (
    DOCUMENTS,
    FULL,
    LENGTH,
    PAD,
    RNG,
    VOCAB,
    causal,
    compiled,
    keras_dataset,
    padded,
    sanity,
    seq2seq,
)


def text():
    texts = [topics[name] for name in sorted(topics)[:20]]
    tokenizer = data.train_tokenizer(texts, unit="character")
    texts = [text[:200] for text in texts[:4]]
    batches = data.causal_lm(texts, tokenizer, seq_len=LENGTH, batch_size=8)
    loss = losses.MaskedSparseCategoricalCrossentropy(tokenizer.pad_id)
    model = models.CausalTransformer(tokenizer.vocab_size, 16, 1, 2, max_length=LENGTH)
    return compiled(model, loss), batches, None


def packed():
    stream = np.concatenate(DOCUMENTS)[: 4 * LENGTH + 1]
    return compiled(causal()), stream[:-1].reshape(4, -1), stream[1:].reshape(4, -1)


def padded_on_the(side):
    rows = padded(DOCUMENTS, side)
    labels = np.where(rows[:, :-1] == PAD, PAD, rows[:, 1:])
    return compiled(causal(pad_id=PAD)), rows[:, :-1], labels


def minus_100():
    _, x, y = padded_on_the("right")
    loss = losses.MaskedSparseCategoricalCrossentropy()
    return compiled(causal(), loss), x, np.where(y == PAD, -100, y)


def teacher_forcing(sources=None):
    targets = padded(DOCUMENTS)
    sources = targets[::-1] if sources is None else sources
    decoder_ids, labels = data.teacher_forcing(targets, start_id=1)
    return compiled(seq2seq()), {"encoder_ids": sources, "decoder_ids": decoder_ids}, labels


def pretrained():
    model, x, y = packed()
    model.fit(x, y, verbose=0, epochs=20)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    return compiled(again), x, y


def with_loss(loss):
    return compiled(causal(), loss), FULL[:, :LENGTH], FULL[:, 1:-1]


def with_optimizer(optimizer):
    return compiled(causal(), optimizer=optimizer), FULL[:, :LENGTH], FULL[:, 1:-1]


def in_half_precision():
    return compiled(causal(dtype="mixed_bfloat16")), FULL[:, :LENGTH], FULL[:, 1:-1]


def one_token_over_and_over():
    ids = np.full((8, LENGTH), 5)
    return compiled(causal()), ids, ids


def runs():
    ids = np.repeat(RNG.permutation(np.arange(1, VOCAB))[:8].reshape(4, 2), 25, axis=1)[:, :13]
    ids = np.concatenate([ids, np.repeat(RNG.integers(1, VOCAB, (4, 1)), 13, axis=1)])
    return compiled(causal()), ids[:, :-1], ids[:, 1:]


def an_autoencoder():
    # Not causal: a masked language model is asked for the ids that it reads.
    backbone = keras.Sequential(
        [keras.layers.Embedding(VOCAB, 8), keras.layers.Bidirectional(
            keras.layers.SimpleRNN(8, return_sequences=True))]
    )  # fmt: skip
    model = models.LanguageModel(backbone, keras.layers.Dense(VOCAB))
    return compiled(model), FULL[:, :LENGTH], FULL[:, :LENGTH]


def tags():
    rows = FULL[:, :LENGTH]
    model = models.LanguageModel(causal().backbone, keras.layers.Dense(5))
    return compiled(model, losses.MaskedSparseCategoricalCrossentropy()), rows, rows % 5


def keras_masked():
    rows = padded(DOCUMENTS)
    backbone = keras.layers.Embedding(VOCAB, 8, mask_zero=True)
    model = models.LanguageModel(backbone, keras.layers.Dense(VOCAB))
    loss = losses.MaskedSparseCategoricalCrossentropy()
    return compiled(model, loss), rows[:, :-1], np.where(rows[:, :-1] == 0, 0, rows[:, 1:])


def weighted():
    _, x, y = padded_on_the("right")
    model = compiled(causal(), losses.MaskedSparseCategoricalCrossentropy())
    return model, keras_dataset(x, y, (y != PAD).astype("float32")), None


def instructions():
    """The loss counts the answers only: prompts and padding have the label -100."""
    rows = padded(FULL[:, :8])
    labels = np.where((np.arange(1, LENGTH + 1) < 4) | (rows[:, 1:] == PAD), -100, rows[:, 1:])
    loss = losses.MaskedSparseCategoricalCrossentropy()
    return compiled(causal(pad_id=PAD), loss), rows[:, :-1], labels


def infilling():
    """Single tokens of a text are asked for, each in its place."""
    rows = FULL[:, : LENGTH + 1]
    labels = np.where(np.arange(LENGTH) % 3 == 1, rows[:, 1:], PAD)
    return compiled(causal()), rows[:, :-1], labels


def packed_with_ends():
    """Documents of one token and more, each with its end, which counts."""
    stream = np.concatenate([np.append(d[: 1 + i % 3], 1) for i, d in enumerate(DOCUMENTS * 4)])
    stream = stream[: 4 * LENGTH + 1]
    return compiled(causal()), stream[:-1].reshape(4, -1), stream[1:].reshape(4, -1)


def plain():
    model = keras.Sequential([keras.layers.Embedding(VOCAB, 8), keras.layers.Dense(VOCAB)])
    return compiled(model), FULL[:, :LENGTH], FULL[:, 1:-1]


SETUPS = {
    "text": text,
    "packed": packed,
    "padded right": lambda: padded_on_the("right"),
    "padded left": lambda: padded_on_the("left"),
    "ignored -100": minus_100,
    "teacher forcing": teacher_forcing,
    "copy task": lambda: teacher_forcing(padded(DOCUMENTS)),
    "pretrained": pretrained,
    "focal": lambda: with_loss(losses.MaskedSparseCategoricalFocalCrossentropy(2.0, 0.25, PAD)),
    "smoothed": lambda: with_loss(losses.MaskedSparseCategoricalCrossentropy(PAD, 0.1, 1e-4)),
    "summed": lambda: with_loss(losses.MaskedSparseCategoricalCrossentropy(reduction="sum")),
    "stock loss": lambda: with_loss(keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "adafactor": lambda: with_optimizer(optimizers.Adafactor(None, relative_step=True)),
    "half precision": in_half_precision,
    "one token": one_token_over_and_over,
    "runs": runs,
    "autoencoder": an_autoencoder,
    "tags": tags,
    "mask_zero": keras_masked,
    "weights": weighted,
    "one row": lambda: (compiled(causal()), FULL[:1, :LENGTH], FULL[:1, 1:-1]),
    "one token a row": lambda: (compiled(causal()), FULL[:, :1], FULL[:, :1]),
    "instructions": instructions,
    "infilling": infilling,
    "packed with ends": packed_with_ends,
    "plain": plain,
}


# Where a backend takes part: arrays, a dictionary, batches of a data set with weights, predictions.
WITH_BACKEND = {"padded right", "teacher forcing", "weights", "stock loss", "half precision"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in WITH_BACKEND else pytest.mark.backend_free)
        for name in SETUPS
    ],
)
@pytest.mark.quick(3)
def test_a_right_set_up_is_left_in_peace(name):
    def action():
        model, x, y = SETUPS[name]()
        options = {} if y is None else {"batch_size": 4}
        model.fit(x, y, epochs=2, verbose=0, **options)

    assert not sanity(action)
