"""Which graphs `torch.compile` turns into kernels, and what that may cost."""

import statistics
import time

import torch

from keras_llm.backend.torch.errors import reason_of

# The share of a graph's remaining time that compiling may take.
SHARE = 0.1
# An estimate for forward and backward on one slow core; the first compilation corrects it.
SECONDS_PER_OPERATION = 0.1
# Fewer calls do not give a reliable time.
CALLS_BEFORE = 10
# Calls of `time_ratio`: two to warm up, then five of each graph.
TIMED_CALLS = 12
# For an error of a compiled graph, which speaks of PyTorch's own settings only.
WHO_COMPILES = (
    "compile was given jit_compile={!r}: torch.compile makes kernels of the layers, for which it "
    "needs a C++ compiler on a CPU and Triton on a GPU. jit_compile=False trains without it."
)
# A pause of more than this many times the shortest step is not counted as a step.
LONGEST_PAUSE = 10


class GraphInUse:
    """A graph, the time for which it has been used, and whether it is compiled.

    Args:
        module: The `torch.fx.GraphModule`.
        training: Whether it is of a training step.
    """

    def __init__(self, module, training: bool):
        self.module, self.training = module, training
        self.operations = len(module.graph.nodes)
        self.is_compiled = False
        self.calls, self.seconds, self.shortest = 0, 0.0, float("inf")

    def count(self, seconds: float):
        """Adds the time from one call to the next."""
        self.shortest = min(self.shortest, seconds)
        self.calls += 1
        self.seconds += min(seconds, LONGEST_PAUSE * self.shortest)


class CompilePolicy:
    """Decides which graphs of a model are compiled; one decision holds for all of them.

    With `jit_compile="auto"` a graph is compiled when compiling takes less than a tenth of the time
    for which the graph will still be used. `fit` knows how many batches remain. If the number is
    unknown, the remaining time is assumed to equal the time so far. So a rare shape is never
    compiled, and a run takes at most a tenth longer. The first graph is timed with and without
    compiling, and the faster way is used for all graphs, as long as compiling does not fail.

    Args:
        jit_compile: True for every graph, False for none, `"auto"` where it pays.
    """

    def __init__(self, jit_compile: bool | str):
        self.jit_compile = jit_compile
        self.seconds_per_operation = SECONDS_PER_OPERATION
        # The time of the first compiled graph by its time before; None until it has been measured.
        self.ratio = None
        self.problem = ""
        self._batches_to_come, self._calls, self._last = None, 0, None

    def begin_epoch(self, batches_to_come: int | None):
        """Notes how many batches this `fit` still has; None where its data does not tell."""
        self._batches_to_come = batches_to_come
        self.pause()

    def pause(self):
        """Does not count the time until the next call: validation, or the time between two fits."""
        self._last = None

    def call(self, graph: GraphInUse, arguments):
        """What the graph returns, compiled if that pays."""
        if self.jit_compile == "auto":
            self._count(graph)
        if not graph.is_compiled and self._pays(graph):
            self._compile(graph, arguments)
        try:
            return graph.module(*arguments)
        except Exception as error:
            if graph.is_compiled:
                error.add_note(WHO_COMPILES.format(self.jit_compile))
            raise

    def _count(self, graph):
        now = time.monotonic()
        if self._last is not None:
            last, began = self._last
            last.count(now - began)
        self._last = graph, now
        if graph.training:
            self._calls += 1
            if self._batches_to_come:
                self._batches_to_come -= 1

    def _pays(self, graph) -> bool:
        """Whether compiling this graph costs less than it may."""
        if self.jit_compile != "auto":
            return bool(self.jit_compile)
        if graph.calls < CALLS_BEFORE or (self.ratio is not None and self.ratio >= 1.0):
            return False
        step, to_come = graph.seconds / graph.calls, graph.seconds
        if graph.training and self._batches_to_come is not None:
            # Assume that the shape keeps its share of the batches.
            part = graph.calls / self._calls
            to_come = max(to_come, step * part * self._batches_to_come)
        cost = graph.operations * self.seconds_per_operation + TIMED_CALLS * step
        return SHARE * to_come > cost

    def _compile(self, graph, arguments):
        module = compiled(graph.module)
        if self.jit_compile == "auto":
            began = time.monotonic()
            # Of a later graph too: to compile it may fail where the first one did not.
            ratio, problem = time_ratio(module, graph.module, arguments)
            if self.ratio is None or problem:
                self.ratio, self.problem = ratio, problem
                self.seconds_per_operation = (time.monotonic() - began) / graph.operations
            self.pause()
            if self.ratio >= 1.0:
                return
        graph.module, graph.is_compiled = module, True

    def describe(self) -> str:
        """What was decided."""
        if not self.jit_compile:
            return ""
        if self.jit_compile != "auto":
            return "by torch.compile, for each shape of a batch"
        if self.problem:
            return f"not compiled: torch.compile failed with {self.problem}"
        if self.ratio is None:
            return "not compiled so far: torch.compile would take longer than it could save"
        ratio = f"compiled by torch.compile it takes {self.ratio:.2f} of the time"
        return ratio if self.ratio < 1.0 else f"not compiled: {ratio}"

    def state_dict(self) -> dict:
        """What was decided and measured."""
        return {name: getattr(self, name) for name in ("ratio", "problem", "seconds_per_operation")}

    def load_state_dict(self, state: dict) -> None:
        """Takes over what was decided."""
        vars(self).update(state)


def compiled(module):
    """The graph in one piece, as kernels; dropout draws what it draws without a compiler."""
    return torch.compile(module, fullgraph=True, dynamic=False, options={"fallback_random": True})


def time_ratio(module, other, arguments, rounds=5) -> tuple[float, str]:
    """The time of `module` by that of `other`, forward and, where gradients are wanted, backward.

    `module` may fail, for want of a C++ compiler for one: then the ratio is infinite, and the
    second value says why.
    """
    devices = sorted({t.device.index for t in arguments if t.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            for _ in range(2):
                seconds(module, arguments)
            times = [(seconds(module, arguments), seconds(other, arguments)) for _ in range(rounds)]
    except Exception as error:
        return float("inf"), reason_of(error)
    mine, theirs = (statistics.median(side) for side in zip(*times, strict=True))
    return mine / theirs, ""


def seconds(module, arguments) -> float:
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
