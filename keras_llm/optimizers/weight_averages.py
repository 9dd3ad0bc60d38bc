"""Moving averages of the weights, `use_ema=True`, in more precision than the weights have."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_llm.tensor import Tensor


def update_averages(
    averages: Sequence, variables: Sequence[keras.Variable], momentum: float, iterations: Tensor
) -> None:
    """Adds the weights to their averages; the first update copies them.

    As in Keras, but in the averages' precision: 0.99 is 0.988 in bfloat16.

    Args:
        averages: A variable for each of `variables`, or None.
        variables: The weights.
        momentum: What remains of an average.
        iterations: Updates before this one.
    """
    for variable, average in zip(variables, averages, strict=True):
        if average is not None:
            value = ops.cast(variable, average.dtype)
            moved = average + (value - average) * (1 - momentum)
            average.assign(ops.where(ops.cast(iterations, "bool"), moved, value))


def assign_averages(averages: Sequence, variables: Sequence[keras.Variable]) -> None:
    """Gives weights the values of their averages; Keras's own does not cast on TensorFlow."""
    for variable, average in zip(variables, averages, strict=True):
        if average is not None:
            variable.assign(ops.cast(average, variable.dtype))
