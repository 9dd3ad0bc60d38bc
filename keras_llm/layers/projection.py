"""The matrices of a block."""

from typing import Any

import keras


def projection(width: int, name: str, dtype: Any, stddev: float = 0.02) -> keras.layers.Dense:
    """A dense layer without bias; its kernel is initialised from N(0, stddev), as in GPT-2."""
    return keras.layers.Dense(
        width,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=stddev),
        dtype=dtype,
        name=name,
    )
