"""Mistakes that a batch shows: in its labels, in what the model made of it, in its first loss."""

from typing import Any, NamedTuple

import numpy as np

from keras_llm.checks.compile_checks import unfitting_predictions
from keras_llm.checks.sanity_warning import guided

# What a check of the labels must have before it speaks. Fewer tokens, or fewer different ones, may
# agree by chance; a text that repeats itself agrees with every shift, the right one too.
ENOUGH_TOKENS = 8
ENOUGH_IDS = 3
NEARLY_ALL = 0.95
HARDLY = 0.5
# Rows that end alike may be a coincidence of two or three.
ENOUGH_ROWS = 4

MASKING = "2_cross_entropy_and_masking"


class Batch(NamedTuple):
    """A batch in numpy.

    Attributes:
        ids: What the decoder reads, `[batch, length]`; None where the model is not known to predict
            the next of them.
        labels: Integers, `[batch, length]`.
        counts: Booleans of that shape: which labels the loss counts.
    """

    ids: Any
    labels: Any
    counts: Any


def batch_messages(batch: Batch, vocab_size: int | None, masked: bool) -> list[str]:
    """What is wrong with a batch, a line for each mistake.

    Args:
        batch: The batch.
        vocab_size: The number of logits, where it is known.
        masked: Whether the model's own masks leave out more than `counts` shows.
    """
    if not batch.counts.any():
        return [
            guided("No label of the first batch counts: all are ignored or have weight 0.", MASKING)
        ]
    found = [
        outside_vocabulary(batch, vocab_size),
        wrong_shift(batch),
        None if masked else counted_padding(batch),
    ]
    return [message for message in found if message]


def outside_vocabulary(batch: Batch, vocab_size: int | None) -> str | None:
    """Ids that the vocabulary does not have, where no error has said so yet."""
    largest = batch.labels[batch.counts].max()
    if batch.ids is not None:
        largest = max(largest, batch.ids.max())
    if vocab_size is None or largest < vocab_size:
        return None
    return guided(
        f"The first batch has the id {largest}, but the model's vocabulary has {vocab_size} ids, "
        f"0 to {vocab_size - 1}: use the vocab_size of the tokenizer.",
        "1_what_compile_means",
    )


def wrong_shift(batch: Batch) -> str | None:
    """Labels that are not the next ids: those that are read already, or those after the next."""
    if batch.ids is None or len(set(batch.labels[batch.counts].tolist())) < ENOUGH_IDS:
        return None
    same, following, second = (agreement(batch, places) for places in range(3))
    if following is None or following > HARDLY:
        return None
    if same > NEARLY_ALL:
        return guided(
            "The labels are not shifted: at nearly every position the label is the id that the "
            "decoder reads there, so the model sees the answer. Label t must be id t + 1.",
            "6_the_training_loop",
        )
    if second is not None and second > NEARLY_ALL:
        return guided(
            "The labels are shifted twice: at nearly every position t the label is id t + 2. "
            "Shift once, in the data: label t must be id t + 1.",
            "6_the_training_loop",
        )
    return None


def agreement(batch: Batch, places: int) -> float | None:
    """The share of labels that are the id so many places on; None where too few have one."""
    stop = batch.ids.shape[1] - places
    counts = batch.counts[:, : max(stop, 0)]
    if counts.sum() < ENOUGH_TOKENS:
        return None
    return float((batch.labels[:, :stop] == batch.ids[:, places:])[counts].mean())


def counted_padding(batch: Batch) -> str | None:
    """One label that fills up rows of different lengths, and counts."""
    if len(batch.labels) < ENOUGH_ROWS:
        return None
    for labels, counts in (
        (batch.labels[:, ::-1], batch.counts[:, ::-1]),
        (batch.labels, batch.counts),
    ):
        ids, rows = np.unique(labels[:, 0][counts[:, 0]], return_counts=True)
        if not len(ids):
            continue
        padding = ids[rows.argmax()]
        # How many there are before the first other label.
        lengths = np.cumprod((labels == padding) & counts, axis=1).sum(axis=1)
        filled = lengths[lengths >= 2]
        if 2 * len(filled) >= len(labels) and len(set(filled.tolist())) > 1:
            return guided(
                f"Padding seems to count: the label {padding} fills up {len(filled)} of "
                f"{len(labels)} rows. If it is padding, write ignore_index={padding} in the loss "
                "and the metrics.",
                MASKING,
            )
    return None


def unlikely_predictions(predictions, loss) -> str | None:
    """Predictions `[..., vocab]` that are not what the loss takes them for."""
    if predictions is None or not np.isfinite(predictions).all():
        return None
    # Half precision adds up to 1 within a hundredth.
    are_probabilities = predictions.shape[-1] > 1 and bool(
        (predictions >= 0).all() and np.allclose(predictions.sum(-1), 1.0, atol=0.02)
    )
    return unfitting_predictions(loss, are_logits=not are_probabilities)


def large_first_loss(loss: float, of_guessing: float, vocab_size: int) -> str | None:
    """A model that has learnt nothing and is worse than one that finds all tokens equally likely.

    A smaller loss is that of a model that has learnt something already, and no mistake. For cross
    entropy the bound is 1.5 ln V + 1; for another loss, as many times its own start.
    """
    bound = of_guessing * (1.5 + 1.0 / np.log(vocab_size)) if vocab_size > 1 else np.inf
    if not loss > bound:
        return None
    return guided(
        f"The first loss is {loss:.3g}, but a model that guesses among {vocab_size:,} ids has "
        f"{of_guessing:.3g}: the initial weights are too large, or they are of another vocabulary.",
        "3_perplexity",
    )
