"""Numbers in double precision, which JAX has only where it is told so."""

import jax


def float64():
    """Context manager inside which a cast to float64 gives float64."""
    return jax.enable_x64(True)
