"""Numbers in double precision, where the backend and the device have them."""

import keras

if keras.backend.backend() == "torch":
    from keras_llm.backend.torch.float64 import FLOAT64, cumulative_sum, float64
elif keras.backend.backend() == "jax":
    from keras_llm.backend.jax.float64 import FLOAT64, cumulative_sum, float64
else:
    from keras_llm.backend.tensorflow.float64 import FLOAT64, cumulative_sum, float64

__all__ = ["FLOAT64", "cumulative_sum", "float64"]
