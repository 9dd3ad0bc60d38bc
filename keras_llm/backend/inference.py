"""Running a model without recording anything for a gradient."""

import contextlib

import keras

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.inference import inference_mode
else:
    # JAX and TensorFlow record only inside an explicit gradient.
    inference_mode = contextlib.nullcontext

__all__ = ["inference_mode"]
