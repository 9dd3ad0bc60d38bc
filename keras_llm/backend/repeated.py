"""Functions that are called again and again: captured on PyTorch, compiled elsewhere."""

import keras

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.repeated import Repeated, compiled, size_of
else:
    from keras_llm.backend.ops.repeated import Repeated, compiled, size_of

__all__ = ["Repeated", "compiled", "size_of"]
