"""Facts about JAX and TensorFlow tensors that the rest of the library asks for."""

import keras
import numpy as np

# JAX has no float64 unless the whole process opts in.
SUM_DTYPE = "float32" if keras.backend.backend() == "jax" else "float64"
# Nor int64.
LARGE_ID_DTYPE = "int32" if keras.backend.backend() == "jax" else "int64"


def host_values(tensor) -> np.ndarray | None:
    """The values as a numpy array, or None while a graph is being traced and there are none."""
    if isinstance(tensor, keras.KerasTensor):
        return None
    try:
        return np.asarray(tensor)
    # What JAX's tracers and TensorFlow's graph tensors raise, in this order.
    except (TypeError, NotImplementedError):
        return None
