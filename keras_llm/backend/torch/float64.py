"""Numbers in double precision, where the device has them."""

import contextlib

# Apple's GPU has none.
from keras_llm.backend.torch.tensors import SUM_DTYPE as FLOAT64

float64 = contextlib.nullcontext


def cumulative_sum(x):
    """As in `jax/`. `keras.ops.cumsum` adds in float32."""
    return x.cumsum(-1)


__all__ = ["FLOAT64", "cumulative_sum", "float64"]
