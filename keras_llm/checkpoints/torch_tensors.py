"""PyTorch's tensors as numpy arrays and back, and its random state.

PyTorch's loaders and generators serve every backend, so this does too.
"""

import ml_dtypes
import numpy as np
import torch

# As many bytes, of a kind that numpy and PyTorch both have.
BITS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16)}


def is_tensor(value) -> bool:
    """Whether it is a tensor of PyTorch."""
    return isinstance(value, torch.Tensor)


def to_array(tensor) -> np.ndarray:
    """The values of a tensor in memory of their own; what numpy has not is of `ml_dtypes`."""
    tensor = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    name = str(tensor.dtype).removeprefix("torch.")
    if not hasattr(ml_dtypes, name):
        return tensor.numpy()
    as_bits, _ = BITS[tensor.element_size()]
    return tensor.view(as_bits).numpy().view(getattr(ml_dtypes, name))


def to_tensor(array: np.ndarray):
    """The tensor of an array, on the CPU."""
    name = array.dtype.name
    if not hasattr(ml_dtypes, name):
        return torch.from_numpy(array)
    _, as_bits = BITS[array.itemsize]
    return torch.from_numpy(array.view(as_bits)).view(getattr(torch, name))


def random_state() -> dict:
    """The states of PyTorch's global generators."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_gpu else [],
    }


def set_random_state(state: dict) -> None:
    """Takes what `random_state` returned, for the GPUs that are here."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available():
        for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)
