"""The stages of a step on JAX: stateless, so that nothing of the model changes.

XLA compiles forward, loss and backward to one program, so their times are not known one by one.
"""

import jax
import keras

from keras_llm.backend.keras_private import keras_mask
from keras_llm.tracing.stages import Clock, Differentiated, forward

# What it times waits for its own results.
make_clock = Clock


def differentiate(model, optimizer, batch, variables, clock) -> Differentiated:
    """Forward, loss and backward of one batch."""

    def objective(values, *batch):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            # While it is traced there is nothing to time.
            logits, loss, scaled = forward(model, optimizer, batch, Clock())
        return scaled, (logits, keras_mask(logits), loss)

    values = [variable.value for variable in variables]
    run = precompiled(jax.value_and_grad(objective, has_aux=True), values, *batch)
    with clock("backward"):
        (_, (logits, mask, loss)), gradients = jax.block_until_ready(run(values, *batch))
    return Differentiated(logits, mask, float(loss), gradients)


def apply(optimizer, gradients, variables, clock) -> list:
    """The values that the update would give the variables."""
    state = [variable.value for variable in optimizer.variables]
    values = [variable.value for variable in variables]
    run = precompiled(optimizer.stateless_apply, state, gradients, values)
    with clock("optimizer"):
        values, _ = jax.block_until_ready(run(state, gradients, values))
    return values


def precompiled(function, *arguments):
    """The function, compiled before anything is timed."""
    return jax.jit(function).lower(*arguments).compile()
