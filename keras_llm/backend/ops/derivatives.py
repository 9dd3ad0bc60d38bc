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

        total + f(inputs) - f(inputs)        f(inputs) = sum over all of input * gradient

    with the second f a constant. TensorFlow would keep an `ops.custom_gradient` for ever, with the
    graph that it stands in, and the variables of that.

    Args:
        total: The number.
        gradients: One for each of `inputs`.
        inputs: What it is differentiated with respect to, once.
    """

    def product(x, gradient):
        return ops.sum(ops.cast(x, total.dtype) * ops.cast(gradient, total.dtype))

    linear = sum(map(product, inputs, gradients))
    return total + (linear - ops.stop_gradient(linear))
