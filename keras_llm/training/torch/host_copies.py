"""Scalars on their way from a device to the host, for which nobody waits."""

import numpy as np
import torch


class HostCopies:
    """Copies of a few small tensors, as they are now.

    On a GPU the copies are one more thing in the device's queue. To read them some steps later
    waits for nothing.

    Args:
        values: Tensors, variables of Keras or numbers.
    """

    def __init__(self, values):
        values = [getattr(value, "value", value) for value in values]
        self.values = [self.copy(value) for value in values]
        self.event = None
        if any(getattr(value, "is_cuda", False) for value in values):
            self.event = torch.cuda.Event()
            self.event.record()

    def copy(self, value):
        """A copy of one of the values."""
        if not isinstance(value, torch.Tensor):
            return value
        value = value.detach()
        if not value.is_cuda:
            return value.clone()
        pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return pinned.copy_(value, non_blocking=True)

    def read(self) -> tuple[list[np.ndarray], float]:
        """All values but the last as arrays in float64, and the last as a number."""
        if self.event is not None:
            self.event.synchronize()
        is_tensor = torch.is_tensor
        values = (value.numpy() if is_tensor(value) else value for value in self.values)
        *arrays, last = (np.asarray(value, "float64") for value in values)
        return arrays, float(last)
