"""Derivatives that `keras.ops` has no word for."""

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


def with_gradients(total, gradients, inputs):
    """A number as a function of some arrays, whose gradients are known.

    Args:
        total: The number.
        gradients: One for each of `inputs`.
        inputs: What it is differentiated with respect to, once.
    """

    @ops.custom_gradient
    def known(*inputs):
        def backward(upstream):
            # Scaled first: a loss scale is there because float16 would round small gradients to 0.
            return tuple(
                ops.cast(upstream * ops.cast(gradient, total.dtype), x.dtype)
                for gradient, x in zip(gradients, inputs, strict=True)
            )

        return total, backward

    return known(*inputs)
