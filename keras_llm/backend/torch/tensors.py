"""Facts about torch tensors that the rest of the library asks for."""

import numpy as np
import torch

# Apple's GPU has no float64.
SUM_DTYPE = "float32" if torch.backends.mps.is_available() else "float64"


def host_values(tensor) -> np.ndarray | None:
    """The values in numpy, or None where reading them would wait for a GPU or break a trace."""
    if isinstance(tensor, torch.Tensor):
        # The exact types: a subclass is a tracer's stand-in without values.
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
        if not plain or tensor.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return tensor.detach().numpy()
    return np.asarray(tensor)
