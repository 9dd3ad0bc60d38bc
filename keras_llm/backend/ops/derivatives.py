"""The one thing about derivatives that `keras.ops` has no word for."""

import keras
from keras import ops


def with_derivatives(function, *numbers):
    """`function(*numbers)`, and its derivative by each of them.

    Args:
        function: From vectors to a vector, element by element.
        *numbers: The vectors.

    Returns:
        The values, and a list of vectors; zeros for numbers that the function does not use.
    """
    if keras.backend.backend() == "jax":
        import jax

        values, pull_back = jax.vjp(function, *numbers)
        return values, pull_back(ops.ones_like(values))

    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(numbers)
        values = function(*numbers)
    return values, tape.gradient(values, numbers, unconnected_gradients="zero")
