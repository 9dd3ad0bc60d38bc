"""Mistakes that a batch shows."""

import itertools

import keras
import numpy as np
import pytest

from keras_llm import data, losses
from keras_llm.checks.batch_checks import Batch, batch_messages, unlikely_predictions
from keras_llm.checks.compile_checks import unfitting_predictions
from tests.checks.setups import (
    DOCUMENTS,
    FULL,
    LENGTH,
    PAD,
    RNG,
    VOCAB,
    causal,
    compiled,
    of_fit,
    only,
    padded,
    seq2seq,
)


def test_logits_may_lie_between_0_and_1():
    loss = losses.MaskedSparseCategoricalCrossentropy()
    assert unlikely_predictions(RNG.random((1, 8, VOCAB)), loss) is None
    assert unlikely_predictions(np.zeros((1, 8, VOCAB)), loss) is None
    assert unlikely_predictions(None, loss) is None
    assert unfitting_predictions(losses.MaskedSparseCategoricalCrossentropy(), None) is None
    assert unfitting_predictions(keras.losses.MeanSquaredError(), True) is None


pytestmark = pytest.mark.backend_free
MASKING = "2_cross_entropy_and_masking"


def found_in(rows, ignore_index=-100, labels=None, vocab_size=VOCAB):
    """What is told of rows of a decoder-only model, its labels the next ids."""
    labels = rows[:, 1:] if labels is None else labels
    batch = Batch(rows[:, :-1], labels, labels != ignore_index, ignore_index)
    return batch_messages(batch, vocab_size, masked=False)


@pytest.mark.every_backend
def test_labels_that_are_not_shifted():
    ids = FULL[:, :LENGTH]
    found = of_fit(compiled(causal()), ids, ids)
    only(found, "The labels are not shifted", "6_the_training_loop")
    rows = padded(DOCUMENTS)
    found = found_in(rows, ignore_index=PAD, labels=rows[:, :-1])
    only(found, "The labels are not shifted", "6_the_training_loop")


def test_labels_that_are_shifted_twice():
    found = found_in(FULL[:, : LENGTH + 1], labels=FULL[:, 2:])
    only(found, "The labels are shifted twice", "6_the_training_loop")


def test_a_decoder_that_reads_its_answer():
    rows = padded(DOCUMENTS)
    found = of_fit(compiled(seq2seq()), {"encoder_ids": rows, "decoder_ids": rows}, rows)
    only(found, "The labels are not shifted", "6_the_training_loop")


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_that_counts(side):
    found = found_in(padded(DOCUMENTS, side, fill=7))
    only(found, "Padding seems to count: the label 7 fills up", MASKING)


def with_padding(length, side="right", fill=PAD):
    """Rows with as much padding each."""
    return padded(FULL[:, : LENGTH + 1 - length], side, fill)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_one_length_that_counts(side):
    rows = with_padding(5, side)
    only(found_in(rows), "Padding seems to count: the label 0 fills up 8 of 8 rows", MASKING)
    assert not found_in(rows, ignore_index=PAD)


@pytest.mark.every_backend
def test_padding_of_one_length_in_teacher_forcing():
    decoder_ids, labels = data.teacher_forcing(with_padding(5), start_id=1)
    x = {"encoder_ids": FULL[:, :LENGTH], "decoder_ids": decoder_ids}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = of_fit(compiled(seq2seq(), loss), x, labels, batch_size=8)
    only(found, "Padding seems to count: the label 0 fills up 8 of 8 rows", MASKING)


def test_equal_ends_that_are_no_padding():
    assert found_in(with_padding(5))
    # Three rows; one row again and again; two equal tokens at the end of each row.
    assert not found_in(with_padding(5)[:3])
    assert not found_in(np.tile(with_padding(5)[:1], (8, 1)))
    assert not found_in(with_padding(2))
    # A row without; a text of two tokens.
    rows = with_padding(5)
    rows[3] = FULL[3, : LENGTH + 1]
    assert not found_in(rows)
    assert not found_in(padded(np.random.default_rng(0).integers(1, 3, (8, 8))))


def test_blanks_that_a_task_asks_for():
    """The copying memory task: blanks while the symbols are read, then the symbols."""
    symbols = FULL[:, :4]
    blanks = np.zeros_like(symbols)
    inputs, labels = np.hstack([symbols, blanks, blanks]), np.hstack([blanks, blanks, symbols])
    rows = np.hstack([inputs, blanks[:, :1]])
    assert not found_in(rows, labels=labels)
    assert not found_in(np.flip(rows, 1), labels=np.flip(labels, 1))


def test_the_background_of_pictures_is_no_padding():
    rows = np.zeros((8, 6, 10), int)
    for row, (width, ink) in zip(rows, zip(range(1, 9), FULL[:, :8], strict=True), strict=True):
        row[1:5, 1 : 1 + width] = ink[:width]
    assert not found_in(rows.reshape(8, -1))


def text_of_few_tokens():
    return np.random.default_rng(0).integers(0, 12, (32, LENGTH + 1))


@pytest.mark.every_backend
def test_an_ignored_label_that_is_a_token():
    rows = text_of_few_tokens()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    found = of_fit(compiled(causal(), loss), rows[:, :-1], rows[:, 1:], batch_size=32)
    only(found, "The ignored label 0 seems to be a token of the text", MASKING)
    assert not found_in(rows, ignore_index=-100)
    assert not found_in(rows, ignore_index=30)


def test_ignored_labels_that_are_no_token():
    rows = text_of_few_tokens() + 1
    is_hidden = np.random.default_rng(1).random(rows.shape) < 0.2
    # Labels that were replaced: here and there, or those of a prompt.
    assert not found_in(rows, 0, labels=np.where(is_hidden, 0, rows)[:, 1:])
    prompt = np.arange(LENGTH + 1) < 5
    assert not found_in(rows, 0, labels=np.where(prompt, 0, rows)[:, 1:])
    # Padding inside of rows: each document is filled up to a multiple of 4.
    ends = np.cumsum(np.random.default_rng(2).integers(1, 9, 200))
    packed = np.concatenate(
        [np.pad(np.full(b - a, 5), (0, (a - b) % 4)) for a, b in itertools.pairwise(ends)]
    )
    assert not found_in(packed[: 40 * 13].reshape(40, 13), 0)
    # Fewer than eight.
    assert not found_in(text_of_few_tokens()[:8], 0)


@pytest.mark.every_backend
def test_nothing_counts():
    x = FULL[:, :LENGTH]
    [message] = found_in(FULL[:, : LENGTH + 1], ignore_index=PAD, labels=np.zeros_like(x))
    only([message], "No label of the first batch counts: all are the ignored label 0", MASKING)
    found = of_fit(compiled(causal()), x, FULL[:, 1:-1], sample_weight=np.zeros(len(x)))
    only(found, "No label of the first batch counts: the weights are 0", MASKING)


@pytest.mark.parametrize("id", [VOCAB, -1])
def test_labels_outside_the_vocabulary(id):
    labels = FULL[:, 1:-1].copy()
    labels[0, 0] = id
    found = found_in(FULL[:, : LENGTH + 1], labels=labels)
    only(found, f"The first batch has the id {id}", "1_what_compile_means")


# Where values are seen, as on PyTorch's CPU, they are an error.
@pytest.mark.every_backend
@pytest.mark.not_torch
def test_ids_that_the_backend_does_not_refuse():
    x, y = FULL[:, :LENGTH], FULL[:, 1:-1].copy()
    y[0, 0] = VOCAB
    model = compiled(causal(), run_eagerly=False)
    # FiniteGuard tells of its own that the update was skipped.
    found = [text for text in of_fit(model, x, y) if "the update was skipped" not in text]
    only(found, "The first batch has the id 31", "1_what_compile_means")


def test_evidence_has_to_be_overwhelming():
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    counts = np.ones_like(ids, bool)
    assert batch_messages(Batch(ids, ids, counts), 10, False)
    # Seven tokens with a next one; two different ones; half of them ignored; another model.
    assert not batch_messages(Batch(ids[:, 1:], ids[:, 1:], counts[:, 1:]), 10, False)
    assert not batch_messages(Batch(ids % 2, ids % 2, counts), 10, False)
    assert not batch_messages(Batch(ids, ids, counts & (ids > 3)), 10, False)
    assert not batch_messages(Batch(None, ids, counts), 10, False)
