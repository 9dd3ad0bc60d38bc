"""Rotary position embedding: attention scores depend on the distance of two tokens."""

from typing import Any

import keras
from keras import ops

from keras_llm.arguments import check_number, check_positive_int
from keras_llm.tensor import Tensor


@keras.saving.register_keras_serializable(package="keras_llm")
class RotaryEmbedding(keras.layers.Layer):
    """Cosines and sines of the angles by which queries and keys are rotated (RoPE, Su et al. 2021,
    https://arxiv.org/abs/2104.09864).

    Coordinates i and i + head_dim / 2 of a head form a plane, as in Hugging Face's Llama, so that
    weights can be exchanged. At position p the plane is rotated by

        angle(p, i) = p * theta^(-2i / head_dim)

    so the dot product of a query at p and a key at q depends on p - q alone.

    Args:
        head_dim: Size of an attention head, an even number.
        theta: Base of the wavelengths, which range from 2 pi to 2 pi theta.

    Call arguments:
        positions: Integers, `[length]` or `[batch, length]`.

    Returns:
        The pair `(cos, sin)` that `rotate` takes, both `[..., length, 1, head_dim]`: the cosines of
        all planes, repeated for the second half of the head; the sines likewise, negated in the
        first half. Computed in float32, returned in the compute dtype.

    Raises:
        ValueError: `head_dim` is odd.

    Example:
    >>> import numpy as np
    >>> cos, sin = RotaryEmbedding(head_dim=2)(np.array([0, 1, 2]))
    >>> rotated = rotate(ops.array([[[[1.0, 0.0]]]]), (cos, sin))
    >>> [[round(float(c), 3) for c in plane] for plane in rotated[0, :, 0]]   # 0, 1, 2 radians
    [[1.0, 0.0], [0.54, 0.841], [-0.416, 0.909]]
    """

    def __init__(self, head_dim: int, theta: float = 10_000.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if check_positive_int(head_dim, "head_dim") % 2:
            raise ValueError(
                "head_dim (d_model / num_heads) must be even: rotary positions rotate pairs of "
                f"coordinates. Received: head_dim={head_dim}"
            )
        self.head_dim = head_dim
        self.theta = check_number(theta, "theta", "(0, inf)")

    def call(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines and sines of the angles at `positions`."""
        exponents = ops.arange(0, self.head_dim, 2, dtype="float32") / self.head_dim
        angles = ops.cast(positions, "float32")[..., None, None] * self.theta**-exponents
        cos, sin = (ops.cast(x, self.compute_dtype) for x in (ops.cos(angles), ops.sin(angles)))
        return ops.concatenate([cos, cos], axis=-1), ops.concatenate([-sin, sin], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "head_dim": self.head_dim, "theta": self.theta}


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys `[batch, length, heads, head_dim]`, rotated by `RotaryEmbedding`'s angles.

    In each plane (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    cos, sin = cos_sin
    # Rolling by half a head puts the other coordinate of its plane in the place of each.
    return x * cos + ops.roll(x, x.shape[-1] // 2, axis=-1) * sin
