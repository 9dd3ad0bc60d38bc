"""The product of attention, softmax(Q K^T / sqrt(head_dim)) V, as the backend does it best."""

import keras

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.attention import attend
else:
    from keras_llm.backend.ops.attention import attend

__all__ = ["attend"]
