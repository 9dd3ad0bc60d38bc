"""The sums that every number is made of.

A loss or a metric of a language model is a sum over the tokens that count, divided once. Sums add:
over micro-batches, steps, ranks and epochs. Means do not. So everything here passes sums around.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_llm.backend import among_top, reduce_logits
from keras_llm.backend.ids import check_ids, check_integers
from keras_llm.backend.ops.logits_pass import TokenNumbers, wide, wide_dtype


class TokenStatistics(NamedTuple):
    """Sums over the tokens that count. Two of them add up, field by field.

    Attributes:
        loss: What is minimised.
        nll: The negative log-likelihood of the labels in nats: never smoothed, focused or scaled.
        correct: How many labels were among the `top_k` best guesses.
        tokens: How many tokens there were; the sum of their weights where they have weights.

    >>> total = TokenStatistics(2.0, 2.0, 1, 4) + TokenStatistics(1.0, 1.0, 0, 1)
    >>> total.loss / total.tokens
    0.6
    """

    loss: Any
    nll: Any
    correct: Any
    tokens: Any

    def __add__(self, other):
        return TokenStatistics(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class TokenRows(NamedTuple):
    """A batch, and what its logits come to.

    Attributes:
        logits: The logits, `[..., vocab]`.
        labels: The labels `[...]`; 0 where they do not count, so that they always index the
            vocabulary.
        weights: 0 where a token does not count, else its weight; `[...]`, in float32 (float64
            where the logits are).
        numbers: The `TokenNumbers`.
    """

    logits: Any
    labels: Any
    weights: Any
    numbers: TokenNumbers

    @property
    def nll(self):
        """The negative log-likelihood of each label."""
        return self.numbers.nll


def divide(total, tokens):
    """`total / tokens`, and 0 with gradient 0 where nothing counts."""
    # Ones of the device, here and below: a Python number would be copied to it, which waits.
    return total / ops.where(tokens == 0, ops.ones_like(tokens), tokens)


def weighted(values, weights):
    """`values * weights`, and 0 where a token does not count even if its value is not finite."""
    return ops.where(weights != 0, values * weights, ops.zeros_like(values))


def token_statistics(rows, losses=None, top_k=0):
    """Sums a batch of `TokenRows`.

    Args:
        rows: The batch.
        losses: The loss of each token; None where only the raw `nll` is wanted.
        top_k: Counts a label as correct among this many best guesses; 0 counts nothing.
    """
    nll = ops.sum(weighted(rows.nll, rows.weights))
    loss = nll if losses is None else ops.sum(weighted(losses, rows.weights))
    correct = ops.zeros_like(nll)
    if top_k:
        logits, labels, weights, numbers = rows
        hits = among_top(logits, labels, weights != 0, numbers.largest, top_k)
        correct = ops.sum(ops.cast(hits, weights.dtype) * weights)
    return TokenStatistics(loss, nll, correct, ops.sum(rows.weights))


def token_rows(
    labels,
    logits,
    ignore_index=-100,
    from_logits=True,
    sample_weight=None,
    mask=None,
    for_loss=False,
):
    """Reduces logits over the vocabulary: what every token loss and metric starts from.

    Args:
        labels: Integers `[...]` or `[..., 1]`.
        logits: Floats `[..., vocab]`; probabilities with `from_logits=False`.
        ignore_index: Labels of this value do not count.
        from_logits: Whether the predictions are logits.
        sample_weight: None, or weights that broadcast to the labels from the left: `[batch]`,
            `[batch, length]`. A weight of 0 is padding.
        mask: None, or booleans of the labels' shape: false is padding.
        for_loss: Whether a loss asks: it needs the mean of the logits too.

    Returns:
        `TokenRows`. Where values cannot be seen (a traced graph, a GPU), a label outside the
        vocabulary has an `nll` of NaN: it is never counted as if it were another id.

    Raises:
        TypeError: the labels are not integers.
        ValueError: the shapes do not fit, or a label that counts is outside the vocabulary.
    """
    logits = ops.convert_to_tensor(logits)
    if not from_logits:
        logits = log_probabilities(wide(logits))
    labels, weights, outside = countable(
        labels, logits.shape, ignore_index, sample_weight, mask, wide_dtype(logits)
    )
    numbers = reduce_logits(logits, labels, weights != 0, for_loss)
    if outside is not None:
        numbers = numbers._replace(nll=ops.where(outside, float("nan"), numbers.nll))
    return TokenRows(logits, labels, weights, numbers)


def countable(labels, logits_shape, ignore_index, sample_weight, mask, dtype):
    """Which tokens count, and how much.

    Returns:
        Labels of which each indexes the vocabulary, 0 in place of those that do not count; the
        weights; and, where values cannot be seen, booleans: true for a label that counts although
        it is outside the vocabulary, which must come out as NaN. None where there is none.
    """
    labels = integer_labels(labels, logits_shape)
    weights = token_weights(labels != ignore_index, sample_weight, mask, dtype)
    counts = weights != 0
    vocab_size = logits_shape[-1]
    checked = check_ids(
        labels,
        vocab_size,
        what="Labels",
        counts=counts,
        hint=f"Only labels equal to ignore_index={ignore_index} are left out; "
        "if this id is your padding, pass it as ignore_index.",
    )
    if checked:
        return ops.where(counts, labels, ops.zeros_like(labels)), weights, None
    inside = (labels >= 0) & (labels < vocab_size)
    return ops.where(counts & inside, labels, ops.zeros_like(labels)), weights, counts & ~inside


def log_probabilities(probabilities):
    """Their logarithms, where a probability of 0 costs 87 nats and not infinity."""
    smallest_normal_float32 = 1.2e-38
    return ops.log(
        ops.where(probabilities > smallest_normal_float32, probabilities, smallest_normal_float32)
    )


def integer_labels(labels, logits_shape):
    """Labels as an integer tensor of the logits' leading shape."""
    if labels is None:
        raise ValueError("A loss of tokens needs labels: fit(ids, labels). Received: y=None")
    labels = ops.convert_to_tensor(labels)
    check_integers(labels, "Labels")
    if len(labels.shape) == len(logits_shape) and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, -1)
    expected = tuple(logits_shape[:-1])
    fits = len(labels.shape) == len(expected) and all(
        a == b or a is None or b is None for a, b in zip(labels.shape, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Labels must be integers of shape {expected}, one for each row of the logits "
            f"{tuple(logits_shape)}. Received: shape {tuple(labels.shape)}. "
            "One-hot labels are not needed: pass the ids."
        )
    return labels


def token_weights(counts, sample_weight, mask, dtype):
    """The weight of every token: 0 where it does not count, `sample_weight` elsewhere."""
    weights = ops.cast(counts, dtype)
    for factor in (sample_weight, mask):
        if factor is None:
            continue
        factor = ops.cast(ops.convert_to_tensor(factor), dtype)
        if len(factor.shape) == len(weights.shape) + 1 and factor.shape[-1] == 1:
            factor = ops.squeeze(factor, -1)
        if len(factor.shape) > len(weights.shape):
            raise ValueError(
                f"sample_weight must have the labels' shape {tuple(weights.shape)} or a leading "
                f"part of it. Received: shape {tuple(factor.shape)}"
            )
        while len(factor.shape) < len(weights.shape):
            factor = ops.expand_dims(factor, -1)
        weights = weights * factor
    return weights
