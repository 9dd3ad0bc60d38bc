"""Root mean square normalisation."""

from typing import Any

import keras
from keras import ops

from keras_llm.arguments import check_number
from keras_llm.tensor import Tensor


@keras.saving.register_keras_serializable(package="keras_llm")
class RMSNorm(keras.layers.Layer):
    """Divides a vector by its root mean square (Zhang and Sennrich 2019,
    https://arxiv.org/abs/1910.07467):

        RMSNorm(x) = x / sqrt(mean(x^2) + epsilon) * scale

    Equal to `keras.layers.RMSNormalization`, except in mixed precision: Keras casts the scale to
    bfloat16, which rounds 1.003 to 1. Here the scale and the arithmetic stay in float32.

    Args:
        epsilon: Added to the mean square, so that a vector of zeros gives no division by zero.

    Call arguments:
        x: `[..., d_model]`.

    Returns:
        The same shape, in the dtype of `x`.

    Example:
    >>> import numpy as np
    >>> y = RMSNorm()(np.array([[3.0, 4.0]], "float32"))
    >>> print(ops.convert_to_numpy(y).round(3))
    [[0.849 1.131]]
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = check_number(epsilon, "epsilon", "[0, inf)")

    def build(self, input_shape: Any) -> None:
        """Creates the scale."""
        self.scale = self.add_weight(
            name="scale", shape=(input_shape[-1],), initializer="ones", autocast=False
        )

    def call(self, x: Tensor) -> Tensor:
        """The equation above."""
        return ops.rms_normalization(x, scale=self.scale, epsilon=self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}
