"""The only rooms that import torch, jax or tensorflow: `torch/`, and `ops/` for the rest.

Importing this package chooses the backend, so that it is settled before Keras loads.
"""

from keras_llm.backend.choice import choose_backend

choose_backend()

import keras  # noqa: E402

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch import SUM_DTYPE, TrainStep, host_values
else:
    from keras_llm.backend.ops import SUM_DTYPE, TrainStep, host_values

__all__ = ["SUM_DTYPE", "TrainStep", "host_values"]
