"""Functions of layers, compiled by `jax.jit`."""

import functools

import jax
import keras

from keras_llm.backend.layer_settings import unique_variables


def compiled(function, layers, jit_compile):
    """As in `ops/`."""
    variables = unique_variables(layers)

    @functools.partial(jax.jit, donate_argnums=1)
    def run(values, state, *inputs):
        with keras.StatelessScope(zip(variables, values, strict=True)):
            return function(state, *inputs)

    def call(state, *inputs):
        return run([variable.value for variable in variables], state, *inputs)

    return call
