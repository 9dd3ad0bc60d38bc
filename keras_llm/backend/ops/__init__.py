"""What runs on any backend that Keras has, by `keras.ops`."""

from keras_llm.backend.ops.tensors import SUM_DTYPE, host_values
from keras_llm.backend.ops.train_step import TrainStep

__all__ = ["SUM_DTYPE", "TrainStep", "host_values"]
