"""Checks of arguments that the whole package shares: what was expected, and what was received."""

import numbers
from collections.abc import Collection


def check_positive_int(value, name: str) -> int:
    """`value` as a Python int; raises `ValueError` unless it is an integer of at least 1."""
    return _check_int(value, name, 1, "a positive integer")


def check_non_negative_int(value, name: str) -> int:
    """`value` as a Python int; raises `ValueError` unless it is an integer of at least 0."""
    return _check_int(value, name, 0, "a non-negative integer")


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
    if (
        not isinstance(value, numbers.Real)
        or isinstance(value, bool)
        or not low <= value <= high
        or (value == low and interval[0] == "(")
        or (value == high and interval[-1] == ")")
    ):
        raise ValueError(f"{name} must be a number in {interval}. Received: {name}={value!r}")
    return float(value)


def check_one_of(value, name: str, choices: Collection):
    """`value`; raises `ValueError` unless it is one of `choices`."""
    if value not in list(choices):
        raise ValueError(f"{name} must be one of {list(choices)}. Received: {name}={value!r}")
    return value


def _check_int(value, name, at_least, wanted):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{name} must be {wanted}. Received: {name}={value!r}")
    return int(value)
