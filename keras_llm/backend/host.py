"""Values of the backend on the host.

Keras makes an array of a PyTorch or TensorFlow tensor in a way that numpy 2 deprecates, with a
warning in every `fit`; these do not.
"""

import keras
import numpy as np
from keras import ops


def to_float(scalar) -> float:
    """The value of a scalar tensor or variable."""
    return float(ops.convert_to_tensor(scalar))


def to_numpy(tensor) -> np.ndarray:
    """The values of a tensor, a variable or an array, in a copy."""
    if isinstance(tensor, np.ndarray | list | tuple):
        return ops.convert_to_numpy(tensor)
    if keras.backend.backend() == "jax":
        return np.array(ops.convert_to_tensor(tensor))
    if keras.backend.backend() == "tensorflow":
        return ops.convert_to_tensor(tensor).numpy().copy()
    tensor = ops.convert_to_tensor(tensor).detach().cpu()
    # numpy has no bfloat16.
    is_narrow = keras.backend.standardize_dtype(tensor.dtype) == "bfloat16"
    return (tensor.float() if is_narrow else tensor).numpy().copy()
