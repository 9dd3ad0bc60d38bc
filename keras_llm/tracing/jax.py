"""The stages of a step on JAX: stateless, so that nothing of the model changes."""

import contextlib

import jax
import keras

from keras_llm.backend.keras_private import keras_mask
from keras_llm.tracing.stages import Clock, Differentiated


def differentiate(model, optimizer, batch, variables, clock) -> Differentiated:
    """Forward, loss and backward of one batch."""
    x, y, sample_weight = batch

    def objective(values):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            with clock("forward"):
                logits = model(x, training=True)
            with clock("loss"):
                loss = model.compute_loss(
                    x=x, y=y, y_pred=logits, sample_weight=sample_weight, training=True
                )
                scaled = optimizer.scale_loss(loss)
        return scaled, (logits, keras_mask(logits), loss)

    values = [variable.value for variable in variables]
    scaled, backward, (logits, mask, loss) = jax.vjp(objective, values, has_aux=True)
    with clock("backward"):
        (gradients,) = jax.block_until_ready(backward(keras.ops.ones_like(scaled)))
    return Differentiated(logits, mask, float(loss), gradients)


def apply(optimizer, gradients, variables) -> list:
    """The values that the update would give the variables."""
    values, _ = optimizer.stateless_apply(
        [variable.value for variable in optimizer.variables],
        gradients,
        [variable.value for variable in variables],
    )
    return jax.block_until_ready(values)


def make_clock() -> Clock:
    """A clock. JAX has no way to wait for values that are being differentiated."""
    return Clock(lambda: None, lambda: None)


def other_state_kept(model):
    """Keras's variables are all the state there is."""
    return contextlib.nullcontext()
