"""Checks of ids that the transformers share."""

from typing import Any

import numpy as np
from keras import ops

from keras_llm.backend.ids import check_dense, check_integers
from keras_llm.layers.token_embedding import as_indices
from keras_llm.tensor import Tensor


def check_special_id(value: Any, vocab_size: int, name: str) -> None:
    """Raises `ValueError` unless `value` is an id of the vocabulary."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or not 0 <= value < vocab_size:
        raise ValueError(
            f"{name} must be in [0, {vocab_size}), the vocabulary. Received: {name}={value!r}"
        )


def check_ids_shape(ids: Tensor, max_length: int, name: str) -> None:
    """Raises `ValueError` unless `ids` are `[batch, length]`, with at most `max_length` tokens."""
    if not hasattr(ids, "shape"):
        keys = f" with the keys {list(ids)}" if isinstance(ids, dict) else ""
        raise ValueError(
            f"{name} must be one array [batch, length], and labels another: fit(ids, labels), or "
            f"data of such pairs. Received: a {type(ids).__name__}{keys}"
        )
    check_dense(ids, name)
    if len(ids.shape) != 2:
        raise ValueError(f"{name} must be [batch, length]. Received: shape={tuple(ids.shape)}")
    rows, length = ids.shape
    if rows == 0 or length == 0:
        needed = "at least one token a row" if rows else "at least one row"
        raise ValueError(f"{name} must hold {needed}. Received: shape={tuple(ids.shape)}")
    if length is not None and length > max_length:
        raise ValueError(
            f"{name} must be at most max_length={max_length} tokens long. Received: length={length}"
        )


def checked_ids(ids: Tensor, max_length: int, name: str) -> Tensor:
    """`ids` in a dtype that can be compared with any id, after `check_ids_shape`.

    Raises:
        TypeError: ids that are not integers.
    """
    check_ids_shape(ids, max_length, name)
    check_integers(ids, name)
    ids, length = as_indices(ids), ops.shape(ids)[1]
    if isinstance(length, int | None):
        return ids
    # On TensorFlow only the running step knows it: ids outside of the vocabulary come out as NaN.
    return ops.where(length > max_length, -ops.ones_like(ids), ids)
