"""Functions of layers, compiled by `tf.function`."""

import tensorflow as tf


def compiled(function, layers, jit_compile):
    """As in `jax/`. The layers' variables are read when the function runs."""
    known = {}

    def call(*inputs):
        specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, inputs)
        key = tuple((spec.shape, spec.dtype) for spec in tf.nest.flatten(specs))
        if key not in known:
            # Not by a call, after some of which for new shapes TensorFlow warns.
            traced = tf.function(function, jit_compile=jit_compile)
            known[key] = traced.get_concrete_function(*specs)
        return known[key](*inputs)

    return call
