"""The largest numbers of rows, in order."""

from keras import ops


def largest(values, count: int):
    """The indices of the `count` largest values of each row, `[rows, count]`, the largest first.

    Of equal values, that which comes first is the larger one.

    Args:
        values: Numbers, `[rows, size]`.
        count: At most `size`.
    """
    return ops.top_k(values, count)[1]
