"""Facts about torch tensors that the rest of the library asks for."""

import math

import numpy as np
import torch

# Apple's GPU has no float64.
SUM_DTYPE = "float32" if torch.backends.mps.is_available() else "float64"
LARGE_ID_DTYPE = "int64"


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values, and is not a tracer's or a transformation's stand-in."""
    if torch.compiler.is_compiling() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    # Inside torch.func.grad and its like, which have no public way to say so.
    transforming = getattr(torch._C, "_are_functorch_transforms_active", None)
    return transforming is None or not transforming()


def is_on_host(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values are at hand: to read a GPU's, one waits for it."""
    return tensor.device.type == "cpu"


def upcast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float32, in which sums are made, or float64 where the tensor is."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def host_values(tensor) -> np.ndarray | None:
    """The values in numpy, or None where reading them would wait for a GPU or break a trace."""
    if isinstance(tensor, torch.Tensor):
        if not (is_plain(tensor) and is_on_host(tensor)):
            return None
        tensor = tensor.detach()
        # numpy has no bfloat16.
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return np.asarray(tensor)


def exp_in_place(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor.exp_()`, of numbers of at most 0.

    On a CPU, `exp` takes twice as long as `exp2`, and forty times as long where its results are too
    small for a normal number, as a sure model's are.
    """
    return tensor.mul_(math.log2(math.e)).exp2_()


def count_in_place(counter) -> None:
    """Lets a Keras variable of one number be counted up without copying the one to the device.

    In a stateless scope, where the variable stands for another tensor, it is assigned as ever.
    """
    tensor, assign_add = counter.value, counter.assign_add

    def add(value):
        if counter.value is not tensor:
            return assign_add(value)
        with torch.no_grad():
            tensor.add_(value)
        return counter

    counter.assign_add = add
