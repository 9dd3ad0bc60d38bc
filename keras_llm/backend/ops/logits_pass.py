"""What a token's logits come to, and whether its label leads them, in `keras.ops`.

On JAX and TensorFlow a compiler merges these reductions. `backend/torch/logits_pass.py` does on
PyTorch what a compiler would, and comes here where it cannot.
"""

from typing import Any, NamedTuple

import keras
from keras import ops


class TokenNumbers(NamedTuple):
    """The numbers of each token, of the labels' shape, in float32 (float64 where the logits are).

    Attributes:
        nll: `lse - logits[label]`.
        lse: The log-sum-exp of the logits.
        mean_logit: The mean of the logits; None where it was not asked for.
        max_logit: The largest logit if it is already computed, else None.
    """

    nll: Any
    lse: Any
    mean_logit: Any = None
    max_logit: Any = None


def reduce_logits(logits, labels, counts, for_loss) -> TokenNumbers:
    """Reduces logits over the vocabulary.

    Args:
        logits: Floats `[..., vocab]`.
        labels: Integers `[...]`, inside the vocabulary.
        counts: Booleans `[...]`: where false, the numbers may be any.
        for_loss: Whether a loss asks, which needs `mean_logit` too.
    """
    logits = upcast(logits)
    lse = ops.logsumexp(logits, axis=-1)
    nll = lse - label_logits(logits, labels)
    return TokenNumbers(nll, lse, ops.mean(logits, axis=-1) if for_loss else None)


def in_top_k(logits, labels, counts, max_logit, top_k):
    """Whether the label is among the `top_k` largest logits; of equals the first wins.

    For `top_k=1` that is `argmax(logits) == label`.

    Args:
        logits, labels, counts: As in `reduce_logits`.
        max_logit: The `TokenNumbers`' own.
        top_k: How many.
    """
    labels = ops.cast(labels, "int32")
    label_logit = ops.expand_dims(label_logits(logits, labels), -1)
    later = ops.arange(logits.shape[-1], dtype="int32") >= ops.expand_dims(labels, -1)
    # NaN compares false, so a diverged model is never counted right.
    behind = (logits < label_logit) | ((logits == label_logit) & later)
    if top_k == 1:
        return ops.all(behind, axis=-1)
    return ops.sum(ops.cast(~behind, "int32"), axis=-1) < top_k


def weighted(values, weights):
    """`values * weights`, and 0 where a token does not count even if its value is not finite."""
    return ops.where(weights != 0, values * weights, ops.zeros_like(values))


def label_logits(logits, labels):
    """The logit of each label."""
    return ops.squeeze(ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1), -1)


def upcast(logits):
    """The logits in the dtype that statistics are made in."""
    return ops.cast(logits, upcast_dtype(logits))


def upcast_dtype(logits) -> str:
    """`"float32"`, or `"float64"` where the logits are."""
    is_double = keras.backend.standardize_dtype(logits.dtype) == "float64"
    return "float64" if is_double else "float32"
