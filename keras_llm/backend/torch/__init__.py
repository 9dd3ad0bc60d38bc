"""What runs on PyTorch tensors directly."""

from keras_llm.backend.torch.tensors import SUM_DTYPE, host_values
from keras_llm.backend.torch.train_step import TrainStep

__all__ = ["SUM_DTYPE", "TrainStep", "host_values"]
