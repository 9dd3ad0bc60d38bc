"""Positions as rotations: attention then sees only how far apart two tokens are."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_llm")
class RotaryEmbedding(keras.layers.Layer):
    """The angles by which queries and keys are turned (RoPE, Su et al. 2021,
    https://arxiv.org/abs/2104.09864).

    Coordinates i and i + head_dim / 2 of a head form a plane (Llama's pairing in Hugging Face
    transformers, so that weights can be exchanged). At position p it is turned by

        angle(p, i) = p * theta^(-2i / head_dim)

    and the product of a query at p with a key at q depends on p - q alone.

    Args:
        head_dim: The size of an attention head; even.
        theta: The base of the wavelengths, which run from 2 pi to 2 pi theta.

    Call arguments:
        positions: Integers, `[length]` or `[batch, length]`.

    Returns:
        What `rotate` takes, two arrays `[..., length, 1, head_dim]`: the cosines, twice, and the
        sines, first negated. Computed in float32, given in the compute dtype.

    Example:
    >>> import numpy as np
    >>> cos, sin = RotaryEmbedding(head_dim=2)(np.array([0, 1, 2]))
    >>> turned = rotate(ops.array([[[[1.0, 0.0]]]]), (cos, sin))
    >>> [[round(float(c), 3) for c in plane] for plane in turned[0, :, 0]]   # 0, 1 and 2 radians
    [[1.0, 0.0], [0.54, 0.841], [-0.416, 0.909]]
    """

    def __init__(self, head_dim: int, theta: float = 10_000.0, **kwargs):
        super().__init__(**kwargs)
        if head_dim % 2:
            raise ValueError(
                "Rotary positions pair the coordinates of a head: head_dim (d_model / num_heads) "
                f"must be even. Received: head_dim={head_dim}"
            )
        self.head_dim = head_dim
        self.theta = theta

    def call(self, positions):
        """The cosines and sines of the angles at `positions`."""
        exponents = ops.arange(0, self.head_dim, 2, dtype="float32") / self.head_dim
        angles = ops.cast(positions, "float32")[..., None, None] * self.theta**-exponents
        cos, sin = (ops.cast(x, self.compute_dtype) for x in (ops.cos(angles), ops.sin(angles)))
        return ops.concatenate([cos, cos], axis=-1), ops.concatenate([-sin, sin], axis=-1)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "head_dim": self.head_dim, "theta": self.theta}


def rotate(x, rotation):
    """Queries or keys `[batch, length, heads, head_dim]`, turned by `RotaryEmbedding`'s angles.

    In each plane (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    cos, sin = rotation
    # Rolled by half, every coordinate stands where its partner stood.
    return x * cos + ops.roll(x, x.shape[-1] // 2, axis=-1) * sin
