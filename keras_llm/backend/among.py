"""Which numbers are among the largest ones, if some are equal."""

from keras import ops


def is_among(values, least, count):
    """Which of `values` `[rows, size]` are the `count` largest; of equal ones, the first are.

    Args:
        values: Numbers.
        least: The smallest of the `count` largest ones of each row, `[rows, 1]`.
        count: An integer, or integers `[rows, 1]`.
    """
    above, equal = values > least, values == least
    room = count - ops.sum(ops.cast(above, "int32"), axis=-1, keepdims=True)
    return above | (equal & (ops.cumsum(ops.cast(equal, "int32"), axis=-1) <= room))
