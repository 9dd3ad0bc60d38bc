"""What the device tells about itself: its kind, and no more that JAX and TensorFlow agree on."""

import keras


def device_type() -> str:
    """`"cpu"`, or what Keras calls another kind of device."""
    return keras.distribution.list_devices()[0].split(":")[0].lower()


def peak_flops(compute_dtype: str) -> None:
    """Not known."""
    return None


def peak_memory_gb() -> None:
    """Not known."""
    return None
