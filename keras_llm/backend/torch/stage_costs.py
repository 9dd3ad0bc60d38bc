"""The time and the memory of the stages of a step."""

import contextlib
import time

import torch


class Clock:
    """How long each stage takes, and what the GPU holds after it."""

    def __init__(self):
        self.seconds, self.gpu_bytes = {}, {}

    @contextlib.contextmanager
    def __call__(self, stage):
        """Times one stage; a GPU is waited for."""
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        yield
        if gpu:
            torch.cuda.synchronize()
            self.gpu_bytes[stage] = torch.cuda.memory_allocated()
        self.seconds[stage] = time.perf_counter() - start


class KeptForBackward:
    """Counts the memory that autograd keeps, each piece once, without the weights.

    Args:
        weights: Tensors that are there anyway.
    """

    def __init__(self, weights):
        self.seen = {weight.untyped_storage().data_ptr() for weight in weights}
        self.bytes = 0
        # What is kept stays in memory, so an address stands for one piece.
        self.hooks = None

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept)
        self.hooks.__enter__()

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def keep(self, tensor):
        """Counts a tensor; what comes back must not hold on to the graph, or neither would go."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor.detach()
