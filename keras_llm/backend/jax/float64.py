"""Numbers in double precision, which JAX has only where it is told so."""

import jax
import jax.numpy as jnp

FLOAT64 = "float64"


def float64():
    """Context manager inside which a cast to `FLOAT64` gives that, and arithmetic keeps it."""
    return jax.enable_x64(True)


def cumulative_sum(x):
    """The sums of each row of `x` up to each place."""
    return jnp.cumsum(x, axis=-1)
