"""Functions of layers, compiled by `tf.function`."""

import tensorflow as tf


def compiled(function, layers, jit_compile):
    """As in `ops/`."""
    return tf.function(function, jit_compile=jit_compile)
