"""Functions of layers, compiled by `jax.jit`."""

import functools

import jax
import keras

from keras_llm.backend.layer_settings import unique_variables


def compiled(function, layers, jit_compile):
    """A function that calls layers, compiled once for each shape of its inputs.

    It has the weights of the time of the call. Its first input must not be used any more: the
    results may be written over it.

    Args:
        function: From nested structures of tensors to one.
        layers: All layers that it calls, built.
        jit_compile: As of `Repeated`; JAX has one way only.
    """
    variables = unique_variables(layers)

    @functools.partial(jax.jit, donate_argnums=1)
    def run(values, *inputs):
        with keras.StatelessScope(zip(variables, values, strict=True)):
            return function(*inputs)

    return lambda *inputs: run([variable.value for variable in variables], *inputs)
