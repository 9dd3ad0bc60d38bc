"""What the device tells about itself: nothing that JAX and TensorFlow agree on."""


def peak_flops(compute_dtype: str) -> None:
    """Not known."""
    return None


def peak_memory_gb() -> None:
    """Not known."""
    return None
