"""Which tokens count, and how much: by their labels, `sample_weight` and masks."""

import contextlib
import contextvars

import keras
import numpy as np
from keras import ops

from keras_llm.arguments import check_weights
from keras_llm.backend import LARGE_ID_DTYPE, host_values
from keras_llm.backend.ids import check_dense, check_ids, check_integers

# What `ignore_index` is, for the error of one that is no integer.
IGNORE_INDEX = ", the label of padding (-100 where there is none)"


def countable(labels, logits_shape, ignore_index, sample_weight, mask, dtype, signed=False):
    """Which tokens count, and how much: the one place that decides it.

    Args:
        labels, ignore_index, sample_weight, mask, signed: As in `reduce_batch`.
        logits_shape: `[..., vocab]`, from `ops.shape`.
        dtype: Of the weights.

    Returns:
        Labels that index the vocabulary, 0 in place of those that do not count; the weights; and,
        where values cannot be seen, booleans: true for a token that is invalid and must come out
        as NaN (its label is outside the vocabulary, its weight negative or not finite, or labels
        have another shape than logits). None where there is none.
    """
    labels = integer_labels(labels, logits_shape)
    weights, invalid = token_weights(
        is_counted(labels, ignore_index), sample_weight, mask, dtype, signed
    )
    invalid = or_misshaped(invalid, labels, logits_shape)
    labels, counts, vocab_size = widened(labels), weights != 0, logits_shape[-1]
    checked = check_ids(
        labels,
        vocab_size,
        what="Labels",
        counts=counts,
        hint=f"Only labels equal to ignore_index={ignore_index} are left out; "
        "if this id is your padding, pass it as ignore_index.",
    )
    if checked:
        return ops.where(counts, labels, ops.zeros_like(labels)), weights, invalid
    inside = (labels >= 0) & (labels < vocab_size)
    invalid = counts & ~inside if invalid is None else (counts & ~inside) | invalid
    return ops.where(counts & inside, labels, ops.zeros_like(labels)), weights, invalid


def nan_where(invalid, values):
    """The values, and NaN with gradient 0 where they are invalid."""
    # Not the constant, which would be copied to a GPU in every step: a host-device synchronisation.
    return ops.where(invalid, ops.sqrt(-ops.ones_like(values)), values)


def integer_labels(labels, logits_shape):
    """Labels as an integer tensor of the logits' leading shape."""
    if labels is None:
        raise ValueError(
            "A loss of tokens needs labels: fit(ids, labels), or 'labels' beside 'input_ids' for a "
            "model of transformers. Received: y=None"
        )
    check_dense(labels, "Labels")
    labels = ops.convert_to_tensor(labels)
    check_integers(labels, "Labels")
    if len(labels.shape) == len(logits_shape) and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, -1)
    # A size that only the running step knows, on TensorFlow, is a tensor or None.
    expected = tuple(size if isinstance(size, int) else None for size in logits_shape[:-1])
    fits = len(labels.shape) == len(expected) and all(
        a == b or a is None or b is None for a, b in zip(labels.shape, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Labels must be integers of shape {expected}, one for each row of the logits "
            f"{(*expected, logits_shape[-1])}. Received: shape {tuple(labels.shape)}. "
            "One-hot labels are not needed: pass the ids."
        )
    return labels


def or_misshaped(invalid, labels, logits_shape):
    """Which tokens are invalid: all of them where the running step finds labels of another shape.

    Elsewhere `integer_labels` has refused such labels. Those of one column would be broadcast.

    Args:
        invalid: Booleans of the tokens that are known to be, or None.
        labels, logits_shape: As in `countable`.
    """
    pairs = zip(ops.shape(labels), logits_shape, strict=False)
    unknown = [pair for pair in pairs if not all(isinstance(size, int | None) for size in pair)]
    if not unknown:
        return invalid
    differs = ops.any(ops.stack([ops.not_equal(*pair) for pair in unknown]))
    return differs if invalid is None else invalid | differs


def is_counted(labels, ignore_index):
    """Booleans of the labels' shape: false where a label is `ignore_index`.

    The dtype of the labels may be too small to hold `ignore_index`; then none of them is.
    """
    dtype = keras.backend.standardize_dtype(labels.dtype)
    limits = np.iinfo(dtype)
    if not limits.min <= ignore_index <= limits.max:
        return ops.ones_like(labels, dtype="bool")
    wide = widened(labels)
    largest = np.iinfo(keras.backend.standardize_dtype(wide.dtype)).max
    # A number beyond the wide dtype wraps around in the labels' cast: so must this one.
    return wide != (ignore_index if ignore_index <= largest else ignore_index - 2 * (largest + 1))


def widened(labels):
    """Labels in int32, or int64 where the backend has it: there comparisons do not wrap around."""
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if dtype in ("int32", "int64"):
        return labels
    return ops.cast(labels, LARGE_ID_DTYPE if dtype in ("uint32", "uint64") else "int32")


def token_weights(counts, sample_weight, mask, dtype, signed=False):
    """The weight of every token: 0 where it does not count, `sample_weight` elsewhere.

    Returns:
        The weights, and booleans: true where a weight is not finite, or negative although it must
        not be, and values cannot be seen to raise an error. None where there is none.

    Raises:
        TypeError: `sample_weight` is no dense array.
        ValueError: `sample_weight` does not fit the labels, is not finite, or is negative and
            `signed` is false.
    """
    weights, invalid = ops.cast(counts, dtype), None
    for factor in (sample_weight, mask):
        if factor is None:
            continue
        check_dense(factor, "sample_weight")
        factor = ops.cast(ops.convert_to_tensor(factor), dtype)
        if len(factor.shape) == len(weights.shape) + 1 and factor.shape[-1] == 1:
            factor = ops.squeeze(factor, -1)
        expected = tuple(weights.shape)
        fits = len(factor.shape) <= len(expected) and all(
            size in (1, None) or wanted in (size, None)
            for size, wanted in zip(factor.shape, expected, strict=False)
        )
        if not fits:
            raise ValueError(
                f"sample_weight must have the labels' shape {expected} or a leading part of it. "
                f"Received: shape {tuple(factor.shape)}"
            )
        while len(factor.shape) < len(weights.shape):
            factor = ops.expand_dims(factor, -1)
        weights = weights * factor
    if sample_weight is not None:
        values = host_values(weights)
        is_skipped = values is not None and _skips.get() and not np.isfinite(values).all()
        if values is not None and not is_skipped:
            check_weights(values, signed)
        else:
            invalid = ~ops.isfinite(weights)
            invalid = invalid if signed else invalid | (weights < 0)
    return weights, invalid


# Whether weights that are not finite are invalid and no error.
_skips = contextvars.ContextVar("skips", default=False)


@contextlib.contextmanager
def skipped_weights():
    """Context manager of a training step: a weight that is not finite is no error, it is invalid.

    On a GPU its value cannot be seen, and `FiniteGuard` skips the batch: so it does everywhere.
    """
    token = _skips.set(True)
    try:
        yield
    finally:
        _skips.reset(token)
