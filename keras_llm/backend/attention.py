"""Scaled dot-product attention by each backend's fastest kernels."""

import keras

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.attention import attend, segments
else:
    from keras_llm.backend.ops.attention import attend, segments

__all__ = ["attend", "segments"]
