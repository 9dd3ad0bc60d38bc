"""The feed-forward part: what every token does by itself."""

import math

import keras
from keras import ops

from keras_llm.layers.projection import projection


@keras.saving.register_keras_serializable(package="keras_llm")
class GatedFeedForward(keras.layers.Layer):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202), without biases:

        FFN(x) = (silu(x W_gate) * x W_up) W_down

    Args:
        d_model: The width of the model.
        d_ff: The width inside; None for 8/3 d_model, rounded up to a multiple of 64, which
            has the parameters of an ungated layer of 4 d_model.
        output_stddev: Standard deviation that `W_down` starts with. The others start with 0.02.

    Call arguments:
        x: `[..., d_model]`.

    Returns:
        `[..., d_model]`.

    Example:
    >>> GatedFeedForward(d_model=48).d_ff
    128
    """

    def __init__(
        self, d_model: int, d_ff: int | None = None, output_stddev: float = 0.02, **kwargs
    ):
        super().__init__(**kwargs)
        self.d_model = d_model
        self.d_ff = math.ceil(8 * d_model / 3 / 64) * 64 if d_ff is None else d_ff
        self.output_stddev = output_stddev

        dtype = self.dtype_policy
        self.gate = projection(self.d_ff, "gate", dtype)
        self.up = projection(self.d_ff, "up", dtype)
        self.down = projection(d_model, "down", dtype, stddev=output_stddev)

    def build(self, input_shape=None):
        """Creates the three matrices: their sizes are known without an input."""
        self.gate.build((None, self.d_model))
        self.up.build((None, self.d_model))
        self.down.build((None, self.d_ff))

    def call(self, x):
        """The equation above."""
        return self.down(ops.silu(self.gate(x)) * self.up(x))

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "d_ff": self.d_ff,
            "output_stddev": self.output_stddev,
        }
