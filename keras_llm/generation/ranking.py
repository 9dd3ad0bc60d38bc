"""The largest numbers of rows; of equal ones, those that come first."""

from keras import ops

from keras_llm.tensor import Tensor


def is_among(values: Tensor, least: Tensor, count: Tensor) -> Tensor:
    """Booleans like `values` `[rows, size]`: which are the `count` largest ones.

    Args:
        values: Numbers.
        least: The smallest of the `count` largest ones of each row, `[rows, 1]`.
        count: An integer, or integers `[rows, 1]`.
    """
    equal = values == least
    above = ops.sum(ops.cast(values > least, "int32"), axis=-1, keepdims=True)
    place = ops.cumsum(ops.cast(equal, "int32"), axis=-1)
    return (values > least) | (equal & (place <= count - above))


def largest(values: Tensor, count: int) -> Tensor:
    """The indices of the `count` largest values of each row, in order, `[rows, count]`.

    >>> import numpy as np
    >>> largest(ops.convert_to_tensor([[1.0, 3.0, 1.0, 3.0]]), 3).tolist()
    [[1, 3, 0]]
    """
    # PyTorch's top_k chooses any of the equal ones.
    least = ops.top_k(values, count)[0][:, -1:]
    size = values.shape[-1]
    chosen = ops.cast(is_among(values, least, count), "int32") * (size - ops.arange(size))
    indices = size - ops.top_k(chosen, count)[0]
    order = ops.argsort(-ops.take_along_axis(values, indices, axis=-1), axis=-1)
    return ops.take_along_axis(indices, order, axis=-1)
