"""Ids that are not in the vocabulary: found before they index anything."""

import contextlib

import keras
import numpy as np

from keras_llm.backend import host_values

# Who takes the checks that can only be made when a traced graph runs, the innermost last. Not a
# ContextVar: torch.compile cannot trace one.
_takers = []


@contextlib.contextmanager
def deferred_checks(accept):
    """Context manager for tracing, where ids have no values: hands their checks to `accept`.

    Args:
        accept: `(ids, vocab_size, what) -> bool`: whether the check will be made when the graph
            runs.
    """
    _takers.append(accept)
    try:
        yield
    finally:
        _takers.pop()


def check_dense(tensor, what: str) -> None:
    """Raises `TypeError` unless `tensor` is one array, neither ragged nor of unknown rank."""
    if isinstance(tensor, dict | str):
        raise TypeError(f"{what} must be one array. Received: a {type(tensor).__name__}")
    if hasattr(tensor, "row_splits"):
        raise TypeError(
            f"{what} must be one dense array: fill the rows up to one length, "
            "rows.to_tensor(padding). Received: a RaggedTensor"
        )
    if getattr(getattr(tensor, "shape", None), "rank", 0) is None:
        raise TypeError(
            f"{what} must have a known number of dimensions: write from_generator(..., "
            "output_signature=(tf.TensorSpec((None, None), tf.int32), ...)). "
            "Received: a tensor of unknown shape"
        )


def check_integers(ids, what: str) -> None:
    """Raises `TypeError` unless `ids` are integers: a float may already have been rounded."""
    check_dense(ids, what)
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if "int" not in dtype:
        raise TypeError(
            f"{what} must be integers: a float dtype rounds large ids. "
            f"Received: dtype={dtype}. Cast them where they are made."
        )


def check_ids(ids, vocab_size: int, what: str = "ids", counts=None, hint: str = "") -> bool:
    """Raises `ValueError` for an id outside `[0, vocab_size)`, wherever values are visible.

    Returns whether the check was made, or will be made each time that a traced graph runs.

    Args:
        ids: Integer tensor of any shape.
        vocab_size: The number of ids there are.
        what: What the ids are, for the message.
        counts: Boolean tensor of the same shape, or None: where it is false, any id is allowed.
        hint: A sentence to end the message with.
    """
    values = host_values(ids)
    if values is None:
        return counts is None and bool(_takers) and _takers[-1](ids, vocab_size, what)
    outside = (values < 0) | (values >= vocab_size)
    if counts is not None:
        visible = host_values(counts)
        if visible is None:
            return False
        outside &= visible
    if outside.any():
        position = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"{what} must be in [0, {vocab_size}), the vocabulary. "
            f"Received: {int(values[position])} at position {position}.{hint and ' ' + hint}"
        )
    return True
