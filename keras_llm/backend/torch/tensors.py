"""Facts about torch tensors that the rest of the library asks for."""

import numpy as np
import torch

# Apple's GPU has no float64.
SUM_DTYPE = "float32" if torch.backends.mps.is_available() else "float64"


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values: a subclass is a tracer's stand-in without them."""
    exact = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return exact and not tensor.is_meta and not torch.compiler.is_compiling()


def host_values(tensor) -> np.ndarray | None:
    """The values in numpy, or None where reading them would wait for a GPU or break a trace."""
    if isinstance(tensor, torch.Tensor):
        if not is_plain(tensor) or tensor.device.type != "cpu":
            return None
        return tensor.detach().numpy()
    return np.asarray(tensor)
