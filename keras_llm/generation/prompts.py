"""Converts the ids that a user gives to rows, and generated rows back to the same form."""

from typing import Any

import numpy as np

from keras_llm.backend.host import to_numpy
from keras_llm.backend.ids import check_ids, check_integers
from keras_llm.tensor import Tensor


def to_rows(
    ids: Tensor, vocab_size: int, pad_id: int | None = None, what: str = "ids"
) -> list[np.ndarray]:
    """One array per row, without its padding.

    Args:
        ids: Integers: one row (a list or a 1-D array), a batch `[batch, length]`, or a list of rows
            of any lengths.
        vocab_size: The number of ids.
        pad_id: The id with which rows of a batch are padded, on either side; None if with none.
        what: The name of the argument, for the messages.

    Raises:
        ValueError: no rows, an empty row, padding between tokens, an id outside the vocabulary.
        TypeError: ids that are not integers.

    Example:
    >>> import numpy as np
    >>> [row.tolist() for row in to_rows(np.array([[0, 5, 6], [7, 8, 9]]), 10, pad_id=0)]
    [[5, 6], [7, 8, 9]]
    """
    if any(isinstance(each, str) for each in [ids, *(ids if isinstance(ids, list) else ())]):
        raise TypeError(
            f"{what} must be integers: tokenizer.encode(text) makes them. Received: {ids!r}"
        )
    try:
        if _is_list_of_rows(ids):
            rows = [np.asarray(to_numpy(row)) for row in ids]
        else:
            array = np.asarray(to_numpy(ids))
            rows = list(array) if array.ndim == 2 else [array]
    except (TypeError, ValueError) as error:  # what no backend has a dtype for
        raise TypeError(f"{what} must be integers. Received: {ids!r:.80}") from error
    if any(row.ndim != 1 for row in rows):
        raise ValueError(
            f"{what} must be one row of ids, a batch [batch, length] or a list of rows. "
            f"Received: rows of shape {[row.shape for row in rows]}"
        )
    rows = [_without_padding(row, pad_id, what) for row in rows]
    if not rows or not all(len(row) for row in rows):
        raise ValueError(
            f"{what} must hold at least one token in every row. "
            f"Received lengths (without padding): {[len(row) for row in rows]}"
        )
    for row in rows:
        check_integers(row, what)
        check_ids(row, vocab_size, what)
    return rows


def from_rows(
    rows: list[np.ndarray], like: Any, pad_id: int | None
) -> np.ndarray | list[np.ndarray]:
    """Rows in the form of `like`: one array, a batch padded on the right, or a list of arrays."""
    if _is_list_of_rows(like):
        return rows
    return rows[0] if np.ndim(like) == 1 else pad_rows(rows, pad_id)


def pad_rows(
    rows: list[np.ndarray], pad_id: int | None, side: str = "right", width: int | None = None
) -> np.ndarray:
    """Rows as a batch `[rows, width]`, by default as wide as the longest.

    `pad_id` may be None if all rows have that length.

    >>> import numpy as np
    >>> pad_rows([np.array([1, 2]), np.array([3])], pad_id=0, side="left").tolist()
    [[1, 2], [0, 3]]
    """
    width = max(len(row) for row in rows) if width is None else width
    batch = np.full((len(rows), width), 0 if pad_id is None else pad_id, dtype="int64")
    for target, row in zip(batch, rows, strict=True):
        target[slice(len(row)) if side == "right" else slice(width - len(row), None)] = row
    return batch


def _is_list_of_rows(ids: Tensor) -> bool:
    return isinstance(ids, (list, tuple)) and any(np.ndim(row) for row in ids)


def _without_padding(row, pad_id, what):
    if pad_id is None:
        return row
    tokens = np.flatnonzero(row != pad_id)
    inner = row[tokens[0] : tokens[-1] + 1] if len(tokens) else row[:0]
    if len(inner) > len(tokens):
        raise ValueError(
            f"{what} must have padding (pad_id={pad_id}) only before or after the tokens of a row. "
            f"Received: {row.tolist()}"
        )
    return inner
