"""What every transformer asks of its arguments."""

import numpy as np

from keras_llm.backend.ids import check_ids


def check_sizes(**sizes) -> None:
    """Raises `ValueError` unless every size is a positive integer."""
    for name, size in sizes.items():
        if not (isinstance(size, int) and size > 0):
            raise ValueError(f"{name} must be a positive integer. Received: {name}={size!r}")


def check_special_id(special: int | None, vocab_size: int, what: str) -> None:
    """Raises `ValueError` unless an id with a meaning, if it is given, is of the vocabulary."""
    if special is not None:
        check_ids(np.array([special]), vocab_size, what)


def check_ids_shape(ids, max_length: int, what: str) -> None:
    """Raises `ValueError` unless ids are `[batch, length]` and no longer than `max_length`."""
    if not hasattr(ids, "shape"):
        keys = f" with the keys {list(ids)}" if isinstance(ids, dict) else ""
        raise ValueError(
            f"{what} must be one array [batch, length], and labels another: fit(ids, labels), or "
            f"data of such pairs. Received: a {type(ids).__name__}{keys}"
        )
    if len(ids.shape) != 2:
        raise ValueError(f"{what} must be [batch, length]. Received: shape={tuple(ids.shape)}")
    length = ids.shape[1]
    if length is not None and length > max_length:
        raise ValueError(
            f"{what} must be at most max_length={max_length} tokens long. Received: length={length}"
        )
