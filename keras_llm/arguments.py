"""Checks of arguments that the whole package shares: what was expected, and what was received."""

import numbers
import sys
from collections.abc import Collection

import numpy as np


def check_positive_int(value, name: str) -> int:
    """`value` as a Python int; raises `ValueError` unless it is an integer of at least 1."""
    return _check_int(value, name, 1, "a positive integer")


def check_non_negative_int(value, name: str) -> int:
    """`value` as a Python int; raises `ValueError` unless it is an integer of at least 0."""
    return _check_int(value, name, 0, "a non-negative integer")


def check_integer(value, name: str, meaning: str = "") -> int:
    """`value` as a Python int; raises `TypeError` unless it is an integer.

    Args:
        value: The argument.
        name: Its name.
        meaning: What it stands for, for the message.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer{meaning}. Received: {name}={value!r}")
    return int(value)


def check_number(value, name: str, interval: str) -> float:
    """`value` as a float; raises `ValueError` unless it is a real number in the interval.

    Args:
        value: The argument.
        name: Its name.
        interval: As in mathematics: a bracket includes its end, a parenthesis excludes it.

    Example:

    >>> check_number(0, "label_smoothing", "[0, 1)")
    0.0
    >>> check_number(-0.1, "learning_rate", "[0, inf)")
    Traceback (most recent call last):
    ...
    ValueError: learning_rate must be a number in [0, inf). Received: learning_rate=-0.1
    """
    low, high = map(float, interval[1:-1].split(","))
    largest = sys.float_info.max  # an int may be larger
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Not numpy's float32, which is compared in float32.
    number = value if isinstance(value, int) or not is_number else float(value)
    if (
        not is_number
        or not max(low, -largest) <= number <= min(high, largest)
        or (number == low and interval[0] == "(")
        or (number == high and interval[-1] == ")")
    ):
        raise ValueError(f"{name} must be a number in {interval}. Received: {name}={value!r}")
    return float(number)


def check_bool(value, name: str) -> bool:
    """`value` as a Python bool; raises `TypeError` for anything else, such as the text "no"."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False. Received: {name}={value!r}")
    return bool(value)


def check_one_of(value, name: str, choices: Collection):
    """`value`; raises `ValueError` unless it is one of `choices`."""
    if value not in list(choices):
        raise ValueError(f"{name} must be one of {list(choices)}. Received: {name}={value!r}")
    return value


def check_weights(values: np.ndarray, signed: bool) -> None:
    """Raises an error for weights by which a sum cannot be divided.

    Args:
        values: The weights.
        signed: Whether they may be negative.

    Raises:
        TypeError: they are no numbers.
        ValueError: one of them is not finite, or negative although it must not be.
    """
    if values.dtype.kind not in "biufV":  # V: numpy's name for bfloat16
        raise TypeError(f"sample_weight must be numbers. Received: dtype={values.dtype}")
    if not np.isfinite(values).all():
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(
            f"sample_weight must be finite. Received: {values[position]} at position {position}"
        )
    if not signed and (values < 0).any():
        raise ValueError(
            "sample_weight must not be negative: the mean is divided by the sum of the weights. "
            "For rewards of either sign use a loss with reduction='sum'. "
            f"Received: {float(values.min()):g}"
        )


def _check_int(value, name, at_least, wanted):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{name} must be {wanted}. Received: {name}={value!r}")
    return int(value)
