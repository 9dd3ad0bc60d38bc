"""In which form the optimizers take a gradient."""

from typing import Any

import keras
from keras import ops

from keras_llm.tensor import Tensor


def is_low_precision(dtype: Any) -> bool:
    """Whether `dtype` (None: Keras's default float dtype) has less precision than float32."""
    return keras.backend.standardize_dtype(dtype) in ("bfloat16", "float16")


def dense(gradient: Tensor) -> Tensor:
    """The gradient as one tensor.

    TensorFlow's gradient of an embedding is a list of rows, with two rows for a token that occurs
    twice. Their sum must be squared for the norm and for Adam's v, not each of them.
    """
    if not hasattr(gradient, "dense_shape"):
        return gradient
    shape = ops.cast(gradient.dense_shape, gradient.indices.dtype)
    return ops.scatter(gradient.indices[:, None], gradient.values, shape)


def in_float32(gradient: Tensor) -> Tensor:
    """The gradient, in float32 if it has less precision; None stays None."""
    if gradient is None or not is_low_precision(gradient.dtype):
        return gradient
    return ops.cast(gradient, "float32")
