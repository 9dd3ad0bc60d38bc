"""Ids that are not in the vocabulary: found before they index anything."""

import keras
import numpy as np

from keras_llm.backend import host_values

# Set while a graph is traced: what takes the checks that can only be made when it runs.
deferral = None


def check_integers(ids, what: str) -> None:
    """Raises `TypeError` unless `ids` are integers: a float may already have been rounded."""
    dtype = keras.backend.standardize_dtype(ids.dtype)
    if "int" not in dtype:
        raise TypeError(
            f"{what} must be integers: a float dtype rounds large ids. "
            f"Received: dtype={dtype}. Cast them where they are made."
        )


def check_ids(ids, vocab_size: int, what: str = "ids", counts=None, hint: str = "") -> bool:
    """Raises `ValueError` for an id outside `[0, vocab_size)`, wherever values are visible.

    Returns whether they were, or will be each time that a graph runs.

    Args:
        ids: Integer tensor of any shape.
        vocab_size: The number of ids there are.
        what: What the ids are, for the message.
        counts: Boolean tensor of the same shape, or None: where it is false, any id is allowed.
        hint: A sentence to end the message with.
    """
    values = host_values(ids)
    if values is None:
        return counts is None and deferral is not None and deferral.accept(ids, vocab_size, what)
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
