"""Mistakes that a batch shows: in its labels, in the model's predictions, in its first loss."""

from typing import Any, NamedTuple

import numpy as np

from keras_llm.checks.compile_checks import unfitting_predictions
from keras_llm.checks.sanity_warning import guided

# The evidence that a check of the labels needs. Fewer tokens, or fewer different ones, may agree by
# chance; a text that repeats itself agrees with every shift, the right one too.
ENOUGH_TOKENS = 8
ENOUGH_IDS = 3
NEARLY_ALL = 0.95
HALF = 0.5
# Two or three rows may end alike by chance, and all rows may end with two or three equal tokens.
ENOUGH_ROWS = 4
ENOUGH_PADDING = 4

MASKING = "2_cross_entropy_and_masking"


class Batch(NamedTuple):
    """A batch in numpy.

    Attributes:
        ids: The decoder's input, `[batch, length]`; None where the model is not known to predict
            the next id at each position.
        labels: Integers, `[batch, length]`.
        counts: Booleans of that shape: which labels the loss counts.
        ignore_index: The label that the loss ignores; None where it counts all.
    """

    ids: Any
    labels: Any
    counts: Any
    ignore_index: int | None = None


def batch_messages(batch: Batch, vocab_size: int | None, masked: bool) -> list[str]:
    """The mistakes in a batch, one message each.

    The model's own masks may leave out more labels than `batch.counts` shows: `masked`.
    """
    if not batch.counts.any():
        return [nothing_counts(batch)]
    found = [
        outside_vocabulary(batch, vocab_size),
        wrong_shift(batch),
        None if masked else counted_padding(batch),
        ignored_token(batch),
    ]
    return [message for message in found if message]


def nothing_counts(batch: Batch) -> str:
    """A batch without a label that counts."""
    why = (
        "the weights are 0 where the labels are not ignored. "
        "Write a sample_weight above 0 for the tokens to learn."
    )
    if batch.ignore_index is not None and (batch.labels == batch.ignore_index).all():
        why = (
            f"all are the ignored label {batch.ignore_index}. "
            "Correct the labels, or write another ignore_index in the loss."
        )
    return guided(f"No label of the first batch counts: {why}", MASKING)


def outside_vocabulary(batch: Batch, vocab_size: int | None) -> str | None:
    """Ids outside the vocabulary, where no error has said so before."""
    if vocab_size is None:
        return None
    counted = batch.labels[batch.counts]
    found = [counted.min(), counted.max(), *([] if batch.ids is None else [batch.ids.max()])]
    outside = [int(i) for i in found if not 0 <= i < vocab_size]
    if not outside:
        return None
    return guided(
        f"The first batch has the id {outside[-1]}, but the model's vocabulary has {vocab_size} "
        f"ids, 0 to {vocab_size - 1}: write vocab_size=tokenizer.vocab_size in the model, and "
        "label what is to be ignored with the loss's ignore_index.",
        "1_what_compile_means",
    )


def wrong_shift(batch: Batch) -> str | None:
    """Labels that are the ids of the same position, or of the position after the next."""
    if batch.ids is None or len(set(batch.labels[batch.counts].tolist())) < ENOUGH_IDS:
        return None
    same, following, second = (agreement(batch, places) for places in range(3))
    if following is None or following > HALF:
        return None
    if same > NEARLY_ALL:
        message = (
            "The labels are not shifted: at nearly every position t the label is id t, which the "
            "decoder reads there, so the model sees the answer. Label t must be id t + 1: write "
            "fit(ids[:, :-1], ids[:, 1:]), or use data.teacher_forcing for an encoder-decoder."
        )
    elif second is not None and second > NEARLY_ALL:
        message = (
            "The labels are shifted twice: at nearly every position t the label is id t + 2. "
            "Label t must be id t + 1: shift once, as fit(ids[:, :-1], ids[:, 1:]) does."
        )
    else:
        return None
    return guided(message, "6_the_training_loop")


def agreement(batch: Batch, places: int) -> float | None:
    """The fraction of the labels t that are id t + places; None where too few have one."""
    stop = batch.ids.shape[1] - places
    counts = batch.counts[:, : max(stop, 0)]
    if counts.sum() < ENOUGH_TOKENS:
        return None
    return float((batch.labels[:, :stop] == batch.ids[:, places:])[counts].mean())


def counted_padding(batch: Batch) -> str | None:
    """A label that fills up the rows, at their end or at their beginning, and counts.

    It does so to different lengths, or, where `is_padding_of_one_length`, to the same.
    """
    if len(np.unique(batch.labels, axis=0)) < ENOUGH_ROWS:
        return None
    for side in (np.s_[:, ::-1], np.s_[:, :]):
        labels, counts = batch.labels[side], batch.counts[side]
        edge, rows = np.unique(labels[:, 0][counts[:, 0]], return_counts=True)
        if not len(edge):
            continue
        padding = edge[rows.argmax()]
        found = (labels == padding) & counts
        # True in each row up to the first other label.
        run = np.cumprod(found, axis=1).astype(bool)
        # Padding is nowhere else, except alone, where it is also the end of a text. A label that
        # repeats elsewhere is no padding: the background of a picture, a space.
        left = found & ~run
        if (left[:, 1:] & left[:, :-1]).any():
            continue
        lengths = run.sum(axis=1)
        filled = lengths[lengths >= 2]
        varies = 2 * len(filled) >= len(labels) and len(set(filled.tolist())) > 1
        if varies or is_padding_of_one_length(batch, run[side]):
            return guided(
                f"Padding seems to count: the label {padding} fills up {len(filled)} of "
                f"{len(labels)} rows. If it is only padding, write ignore_index={padding} in the "
                "loss; if it also ends a text, label the padding -100 and write "
                "ignore_index=-100.",
                MASKING,
            )
    return None


def is_padding_of_one_length(batch: Batch, run) -> bool:
    """Whether runs of one label are padding that is as long in each row.

    They are where they are long, the other labels are text, and the next ids are the same label. A
    task may have blanks as labels, such as the copying task, but has other ids there. `run` has the
    labels' shape, and is true for the label that fills up the row.
    """
    lengths = run.sum(axis=1)
    if batch.ids is None or lengths.min() != lengths.max() or lengths[0] < ENOUGH_PADDING:
        return False
    if len(np.unique(batch.labels[batch.counts & ~run])) < ENOUGH_IDS:
        return False
    is_next = batch.labels[:, :-1] == batch.ids[:, 1:]
    return bool(is_next[run[:, :-1]].all())


def ignored_token(batch: Batch) -> str | None:
    """An ignored label that is a token of the text: it stands alone between labels that count.

    Padding stands in runs or at the edge of a row. Where a label was replaced, as in a prompt or by
    a mask, the next id is another one.
    """
    if batch.ids is None or batch.ignore_index is None or batch.ignore_index < 0:
        return None
    counts = batch.counts
    # Those at the edge of a row have one neighbour.
    ignored = batch.labels[:, 1:-1] == batch.ignore_index
    alone = ignored & counts[:, :-2] & counts[:, 2:] & (batch.ids[:, 2:] == batch.ignore_index)
    if alone.sum() < ENOUGH_TOKENS or alone.sum() <= HALF * ignored.sum():
        return None
    return guided(
        f"The ignored label {batch.ignore_index} seems to be a token of the text: "
        f"{alone.sum()} times in the first batch it stands alone between labels that count, and "
        "the model never learns to predict it. Write the id of padding as ignore_index in the "
        "loss, or -100 where there is no padding.",
        MASKING,
    )


def unlikely_predictions(predictions, loss) -> str | None:
    """Predictions `[..., vocab]` that are logits where the loss expects probabilities, or the
    reverse."""
    if predictions is None or not np.isfinite(predictions).all():
        return None
    # In half precision a sum of probabilities is off by up to a hundredth.
    are_probabilities = predictions.shape[-1] > 1 and bool(
        (predictions >= 0).all() and np.allclose(predictions.sum(-1), 1.0, atol=0.02)
    )
    return unfitting_predictions(loss, are_logits=not are_probabilities)


def large_first_loss(loss: float, of_guessing: float, vocab_size: int) -> str | None:
    """A first loss far above that of a model to which all tokens are equally likely.

    A smaller one is no mistake: that model has learnt something already. For cross entropy the
    bound is 1.5 ln V + 1; for another loss it is larger by the ratio of the two guessing losses.
    """
    bound = of_guessing * (1.5 + 1.0 / np.log(vocab_size)) if vocab_size > 1 else np.inf
    # NaN is not above it.
    if not loss > bound:
        return None
    return guided(
        f"The first loss is {loss:.3g}, but a model that guesses among {vocab_size:,} ids has "
        f"{of_guessing:.3g}: its initial weights are too large, or were trained with another "
        "vocabulary. Use an initializer with smaller values, or the tokenizer of the weights.",
        "3_perplexity",
    )
