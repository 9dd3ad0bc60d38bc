"""Checks of ids that the transformers share."""

import numbers


def check_special_id(value: int | None, vocab_size: int, name: str) -> None:
    """Raises `ValueError` unless `value` is None or an id of the vocabulary."""
    if value is None:
        return
    if not isinstance(value, numbers.Integral) or not 0 <= value < vocab_size:
        raise ValueError(
            f"{name} must be in [0, {vocab_size}), the vocabulary. Received: {name}={value!r}"
        )


def check_ids_shape(ids, max_length: int, name: str) -> None:
    """Raises `ValueError` unless `ids` are `[batch, length]` with `length <= max_length`."""
    if not hasattr(ids, "shape"):
        keys = f" with the keys {list(ids)}" if isinstance(ids, dict) else ""
        raise ValueError(
            f"{name} must be one array [batch, length], and labels another: fit(ids, labels), or "
            f"data of such pairs. Received: a {type(ids).__name__}{keys}"
        )
    if len(ids.shape) != 2:
        raise ValueError(f"{name} must be [batch, length]. Received: shape={tuple(ids.shape)}")
    length = ids.shape[1]
    if length is not None and length > max_length:
        raise ValueError(
            f"{name} must be at most max_length={max_length} tokens long. Received: length={length}"
        )
