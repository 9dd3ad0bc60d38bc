"""The one kind of matrix in a block."""

import keras


def projection(width: int, name: str, dtype, stddev: float = 0.02) -> keras.layers.Dense:
    """A learned matrix without a bias that starts from N(0, stddev), as in GPT-2 and Llama."""
    return keras.layers.Dense(
        width,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=stddev),
        dtype=dtype,
        name=name,
    )
