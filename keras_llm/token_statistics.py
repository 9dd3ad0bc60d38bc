"""The sums that every number is made of.

A loss or a metric of a language model is a sum over the tokens that count, divided once. Sums add:
over micro-batches, steps, ranks and epochs. Means do not. So everything here passes sums around.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_llm.backend import in_top_k, reduce_logits
from keras_llm.backend.ops.logits_pass import TokenNumbers, upcast, upcast_dtype, weighted
from keras_llm.counted_tokens import countable, nan_where


class TokenStatistics(NamedTuple):
    """Sums over the tokens that count. Two of them add up, field by field.

    Attributes:
        loss: What is minimised.
        nll: The negative log-likelihood of the labels in nats: never smoothed, focused or scaled.
        correct: How many labels were among the `top_k` best guesses.
        tokens: How many tokens there were; the sum of their weights where they have weights (of
            their magnitudes, where a sum allows negative ones).

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


class ReducedBatch(NamedTuple):
    """A batch whose logits have been reduced over the vocabulary.

    Attributes:
        logits: The logits, `[..., vocab]`.
        labels: The labels `[...]`; 0 where they do not count, so that they always index the
            vocabulary.
        weights: 0 where a token does not count, else its weight; `[...]`, in float32 (float64
            where the logits are).
        numbers: The `TokenNumbers`.
        invalid: Booleans, true for a token that is invalid; None where none can be. See
            `countable`.
    """

    logits: Any
    labels: Any
    weights: Any
    numbers: TokenNumbers
    invalid: Any

    @property
    def nll(self):
        """The negative log-likelihood of each label."""
        return self.numbers.nll

    @property
    def vocab_size(self):
        """The length of a row of logits."""
        return self.logits.shape[-1]


def divide(total, tokens):
    """`total / tokens`, and 0 with gradient 0 where nothing counts."""
    # ops.ones_like, and zeros_like elsewhere: a Python number would be copied to a GPU, and the
    # copy is a host-device synchronisation.
    return total / ops.where(tokens == 0, ops.ones_like(tokens), tokens)


def token_statistics(batch, losses=None, top_k=0):
    """Sums a batch.

    Args:
        batch: A `ReducedBatch`.
        losses: The loss of each token; None where only the raw `nll` is wanted.
        top_k: Counts a label as correct among this many best guesses; 0 counts nothing.
    """
    nll = ops.sum(weighted(batch.nll, batch.weights))
    loss = nll if losses is None else ops.sum(weighted(losses, batch.weights))
    correct = ops.zeros_like(nll)
    if top_k:
        logits, labels, weights, numbers, invalid = batch
        hits = in_top_k(logits, labels, weights != 0, numbers.max_logit, top_k)
        hits = ops.cast(hits, weights.dtype)
        # Its label is 0 here, which may be the model's guess.
        hits = hits if invalid is None else nan_where(invalid, hits)
        correct = ops.sum(weighted(hits, weights))
    return TokenStatistics(loss, nll, correct, ops.sum(ops.abs(batch.weights)))


def reduce_batch(
    labels,
    logits,
    ignore_index=-100,
    from_logits=True,
    sample_weight=None,
    mask=None,
    for_loss=False,
    signed=False,
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
        signed: Whether weights may be negative.

    Returns:
        A `ReducedBatch`. Where values cannot be seen (a traced graph, a GPU), a label outside the
        vocabulary, or a weight that is negative or not finite, has an `nll` of NaN, and every sum
        over it is NaN: it is never counted as if it were right.

    Raises:
        TypeError: the labels are not integers.
        ValueError: the shapes do not fit, a label that counts is outside the vocabulary, or a
            weight is negative.
    """
    logits = ops.convert_to_tensor(logits)
    if not from_logits:
        logits = log_probabilities(upcast(logits))
    labels, weights, invalid = countable(
        labels, ops.shape(logits), ignore_index, sample_weight, mask, upcast_dtype(logits), signed
    )
    numbers = reduce_logits(logits, labels, weights != 0, for_loss)
    if invalid is not None:
        numbers = numbers._replace(nll=nan_where(invalid, numbers.nll))
    return ReducedBatch(logits, labels, weights, numbers, invalid)


def log_probabilities(probabilities):
    """Their logarithms, where a probability of 0 costs 87 nats and not infinity."""
    smallest_normal_float32 = 1.2e-38
    return ops.log(
        ops.where(probabilities > smallest_normal_float32, probabilities, smallest_normal_float32)
    )
