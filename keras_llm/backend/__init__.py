"""Kernels and facts of a backend: `torch/` for PyTorch, `ops/` for JAX and TensorFlow.

Importing this package chooses the backend, before Keras loads. Nothing in it knows a model, a loss
or a training loop.
"""

from keras_llm.backend.choice import choose_backend

choose_backend()

import keras  # noqa: E402

from keras_llm.backend.head_matrix import HeadMatrix  # noqa: E402

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.device import peak_flops, peak_memory_gb
    from keras_llm.backend.torch.divergence_pass import divergence_pass
    from keras_llm.backend.torch.logits_pass import in_top_k, reduce_logits
    from keras_llm.backend.torch.tensors import LARGE_ID_DTYPE, SUM_DTYPE, host_values
    from keras_llm.backend.torch.vocabulary_pass import vocabulary_pass
else:
    from keras_llm.backend.ops.device import peak_flops, peak_memory_gb
    from keras_llm.backend.ops.divergence_pass import divergence_pass
    from keras_llm.backend.ops.logits_pass import in_top_k, reduce_logits
    from keras_llm.backend.ops.tensors import LARGE_ID_DTYPE, SUM_DTYPE, host_values
    from keras_llm.backend.ops.vocabulary_pass import vocabulary_pass

__all__ = [
    "LARGE_ID_DTYPE",
    "SUM_DTYPE",
    "HeadMatrix",
    "divergence_pass",
    "host_values",
    "in_top_k",
    "peak_flops",
    "peak_memory_gb",
    "reduce_logits",
    "vocabulary_pass",
]
