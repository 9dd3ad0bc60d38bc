"""Which tokens of a batch count, and how much."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import loss_setting
from keras_llm.counted_tokens import countable
from keras_llm.losses import MaskedLoss, TokenLoss
from keras_llm.training.arrays import as_arrays

WANTED = "batch must be what fit gets at once, (x, y) or (x, y, sample_weight)"


def token_counts(compiled, batch) -> tuple[int, int, int]:
    """Rows, positions, and tokens that count, of a batch as `fit` gets it.

    The mask of a Keras layer is not considered: it is known only once the model has run.

    Raises:
        ValueError: it is not such a batch, or a label that counts is outside the vocabulary.
    """
    _, y, sample_weight = unpacked(compiled.model, checked_batch(batch))
    weights = token_weights(compiled.loss, y, sample_weight, compiled.vocab_size)
    return len(weights), weights.size, int((weights != 0).sum())


def unpacked(model, batch) -> tuple:
    """`(x, y, sample_weight)` of a batch as the model takes it."""
    return getattr(model, "unpack", keras.utils.unpack_x_y_sample_weight)(batch)


def checked_batch(batch):
    """`batch` as a tuple, or with its labels inside as it is.

    Raises:
        ValueError: it is not one of two or three.
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        return batch
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
        what = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise ValueError(f"{WANTED}. Received: {what}")
    return tuple(as_arrays(part) for part in batch)


def token_weights(loss, y, sample_weight, vocab_size: int | None) -> np.ndarray:
    """The weight of each token, 0 where it does not count."""
    if isinstance(loss, TokenLoss):
        labels = ops.convert_to_tensor(y)
        if len(labels.shape) == 3 and labels.shape[-1] == 1:
            labels = ops.squeeze(labels, -1)
        # Without a vocabulary's size any label may be in it.
        logits_shape = (*labels.shape, vocab_size or np.iinfo("int32").max)
        _, weights, _ = countable(
            labels, logits_shape, loss.ignore_index, sample_weight, None, "float32"
        )
    elif isinstance(loss, MaskedLoss):
        # As the loss itself says, of predictions that do not matter.
        outputs = keras.tree.flatten(y)[0]
        _, weights = loss.per_token(y, ops.zeros(outputs.shape), sample_weight)
    else:
        return stock_weights(loss, keras.tree.flatten(y)[0], sample_weight)[0]
    return ops.convert_to_numpy(weights)


def stock_weights(loss, labels, sample_weight=None, mask=None) -> tuple[np.ndarray, float | None]:
    """The weights of a loss of Keras, and what its sum of losses is divided by; None: nothing.

    Labels are integers `[batch, length]`, or the targets of a loss that is not of tokens.
    """
    labels = ops.convert_to_numpy(labels)
    counts = np.ones(labels.shape) if mask is None else ops.convert_to_numpy(mask).astype("float64")
    ignored = loss_setting(loss, "ignore_class")
    if ignored is not None:
        # Not in the labels' own type, where -100 may be another number.
        counts = counts * (labels.astype("int64") != ignored)
    weights = counts
    if sample_weight is not None:
        given = ops.convert_to_numpy(sample_weight)
        weights = counts * given.reshape(given.shape + (1,) * (labels.ndim - given.ndim))
    reduction = getattr(loss, "reduction", None)
    divisor = {"sum": None, "mean_with_sample_weight": weights.sum()}.get(reduction, counts.sum())
    return weights, divisor if divisor is None else float(divisor)
