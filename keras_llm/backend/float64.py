"""Numbers in double precision, where the backend and the device have them."""

import contextlib

import keras

if keras.backend.backend() == "torch":
    # Apple's GPU has none.
    from keras_llm.backend.torch.tensors import SUM_DTYPE as FLOAT64
else:
    FLOAT64 = "float64"

if keras.backend.backend() == "jax":
    from keras_llm.backend.jax.float64 import float64
else:
    float64 = contextlib.nullcontext

__all__ = ["FLOAT64", "float64"]
