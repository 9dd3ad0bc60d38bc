"""The largest numbers of rows, in order."""

import keras

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.ranking import largest
else:
    from keras_llm.backend.ops.ranking import largest

__all__ = ["largest"]
