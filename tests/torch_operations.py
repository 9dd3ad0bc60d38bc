"""What PyTorch is asked to do while a block of code runs, operation by operation."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# What `tensor.item()` and `torch.tensor(1.0)` are, on a CPU too.
WAITS = (aten._local_scalar_dense.default, aten.lift_fresh.default)


class CountWaits(TorchDispatchMode):
    """How often the host waits for the device, or copies a constant there."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.waits += function in WAITS
        return function(*args, **(kwargs or {}))


class Shapes(TorchDispatchMode):
    """The shapes of all that PyTorch's operations return."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        tensors = outputs if isinstance(outputs, tuple | list) else [outputs]
        self.seen |= {tuple(x.shape) for x in tensors if isinstance(x, torch.Tensor)}
        return outputs
