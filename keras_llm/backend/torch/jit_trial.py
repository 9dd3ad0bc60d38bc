"""Whether a compiled graph is faster than the same graph as it is."""

import statistics
import time

import torch

# A run that has lasted this long is worth the compiler's half a minute.
SECONDS_BEFORE, CALLS_BEFORE = 60.0, 10


class JitTrial:
    """Compiles a graph once it has been in use for a minute, and keeps the faster of the two.

    Args:
        module: The graph.
    """

    def __init__(self, module):
        self.module = module
        self.calls, self.began = 0, time.monotonic()
        self.is_over = False

    def __call__(self, *arguments):
        """What the graph returns."""
        self.calls += 1
        in_use = time.monotonic() - self.began
        if not self.is_over and self.calls > CALLS_BEFORE and in_use > SECONDS_BEFORE:
            self.is_over = True
            self.module = faster(self.module, compiled(self.module), arguments)
        return self.module(*arguments)


def compiled(module):
    """The graph in one piece, as kernels; dropout draws what it draws without a compiler."""
    return torch.compile(module, fullgraph=True, dynamic=False, options={"fallback_random": True})


def faster(module, other, arguments, rounds=5):
    """The module that is faster forward and, where gradients are wanted, backward.

    `other` may fail, for want of a compiler for one; then it is `module`.
    """
    devices = sorted({t.device.index for t in arguments if t.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            for _ in range(2):
                seconds(other, arguments)
            times = [(seconds(module, arguments), seconds(other, arguments)) for _ in range(rounds)]
    except Exception:
        return module
    mine, theirs = (statistics.median(side) for side in zip(*times, strict=True))
    return other if theirs < mine else module


def seconds(module, arguments):
    """How long one call takes; no gradient is kept."""
    trained = [t for t in arguments if t.requires_grad]
    wait()
    began = time.perf_counter()
    hidden = module(*arguments)[0]
    if torch.is_grad_enabled() and trained:
        torch.autograd.grad(hidden.sum(), trained, allow_unused=True)
    wait()
    return time.perf_counter() - began


def wait():
    """Lets a GPU finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
