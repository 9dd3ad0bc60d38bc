"""The stages of a step on TensorFlow."""

import functools

import tensorflow as tf

from keras_llm.backend.keras_private import keras_mask
from keras_llm.tracing.stages import Clock, Differentiated, forward

make_clock = functools.partial(Clock, tf.test.experimental.sync_devices)


def differentiate(model, optimizer, batch, variables, clock) -> Differentiated:
    """Forward, loss and backward of one batch."""
    with tf.GradientTape() as tape:
        logits, loss, scaled = forward(model, optimizer, batch, clock)
    with clock("backward"):
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
    return Differentiated(logits, keras_mask(logits), float(loss), gradients)


def apply(optimizer, gradients, variables, clock) -> list:
    """Updates the variables; returns their values."""
    with clock("optimizer"):
        optimizer.apply(gradients, variables)
    return [variable.value for variable in variables]
