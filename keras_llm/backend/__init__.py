"""The only rooms that import torch, jax or tensorflow: `torch/`, and `ops/` for the rest.

Importing this package chooses the backend, so that it is settled before Keras loads.
"""

from keras_llm.backend.choice import choose_backend

choose_backend()

import keras  # noqa: E402

# The train step is built on what comes before it here.
if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.device import peak_flops, peak_memory_gb
    from keras_llm.backend.torch.logits_pass import among_top, reduce_logits
    from keras_llm.backend.torch.tensors import SUM_DTYPE, host_values
    from keras_llm.backend.torch.train_step import TrainStep
else:
    from keras_llm.backend.ops.device import peak_flops, peak_memory_gb
    from keras_llm.backend.ops.logits_pass import among_top, reduce_logits
    from keras_llm.backend.ops.tensors import SUM_DTYPE, host_values
    from keras_llm.backend.ops.train_step import TrainStep

__all__ = [
    "SUM_DTYPE",
    "TrainStep",
    "among_top",
    "host_values",
    "peak_flops",
    "peak_memory_gb",
    "reduce_logits",
]
