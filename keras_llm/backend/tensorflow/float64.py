"""Numbers in double precision."""

import contextlib

import tensorflow as tf

FLOAT64 = "float64"
float64 = contextlib.nullcontext


def cumulative_sum(x):
    """As in `jax/`."""
    return tf.cumsum(x, axis=-1)
