"""The feed-forward part of a block, applied to every token by itself."""

import math
from typing import Any

import keras
from keras import ops

from keras_llm.arguments import check_number, check_positive_int
from keras_llm.layers.projection import projection
from keras_llm.tensor import Tensor


@keras.saving.register_keras_serializable(package="keras_llm")
class GatedFeedForward(keras.layers.Layer):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202), without biases:

        FFN(x) = (silu(x W_gate) * x W_up) W_down

    Args:
        d_model: Width of the model.
        d_ff: Width of the hidden layer; None for 8/3 d_model, rounded up to a multiple of 64. That
            has about as many parameters as an ungated layer of width 4 d_model.
        output_stddev: Standard deviation of the initial values of `W_down`. The other matrices
            have 0.02.

    Call arguments:
        x: `[..., d_model]`.

    Returns:
        `[..., d_model]`.

    Example:
    >>> GatedFeedForward(d_model=48).d_ff
    128
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int | None = None,
        output_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.d_model = check_positive_int(d_model, "d_model")
        self.d_ff = default_d_ff(d_model) if d_ff is None else check_positive_int(d_ff, "d_ff")
        self.output_stddev = check_number(output_stddev, "output_stddev", "[0, inf)")

        dtype = self.dtype_policy
        self.gate = projection(self.d_ff, "gate", dtype)
        self.up = projection(self.d_ff, "up", dtype)
        self.down = projection(d_model, "down", dtype, stddev=output_stddev)

    def build(self, input_shape: Any = None) -> None:
        """Creates the three matrices. Their shapes do not depend on the input."""
        self.gate.build((None, self.d_model))
        self.up.build((None, self.d_model))
        self.down.build((None, self.d_ff))

    def call(self, x: Tensor) -> Tensor:
        """The equation above."""
        return self.down(silu(self.gate(x)) * self.up(x))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "d_ff": self.d_ff,
            "output_stddev": self.output_stddev,
        }


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)`.

    TensorFlow's own has a custom gradient, with which it keeps a model's graph for ever, and the
    variables of that.
    """
    return x * ops.sigmoid(x) if keras.backend.backend() == "tensorflow" else ops.silu(x)


def default_d_ff(d_model: int) -> int:
    """8/3 d_model, rounded up to a multiple of 64."""
    return math.ceil(8 * d_model / 3 / 64) * 64
