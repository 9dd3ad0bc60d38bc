"""The one kind of norm."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_llm")
class RMSNorm(keras.layers.Layer):
    """Divides a vector by its root mean square (Zhang and Sennrich 2019,
    https://arxiv.org/abs/1910.07467):

        RMSNorm(x) = x / sqrt(mean(x^2) + epsilon) * scale

    `keras.layers.RMSNormalization`, except in mixed precision: there Keras rounds the scale to
    bfloat16, where 1 and 1.003 are the same; here all of it is in float32.

    Args:
        epsilon: Keeps a vector of zeros finite.

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

    def __init__(self, epsilon: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        """Creates the scale."""
        self.scale = self.add_weight(
            name="scale", shape=(input_shape[-1],), initializer="ones", autocast=False
        )

    def call(self, x):
        """The equation above."""
        return ops.rms_normalization(x, scale=self.scale, epsilon=self.epsilon)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}
