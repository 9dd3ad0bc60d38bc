"""A step that is applied to its own result again and again, as one graph of torch operations."""

import contextlib
import functools
import inspect
import warnings

import keras
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from keras_llm.backend.ids import deferred_checks
from keras_llm.backend.layer_settings import unique_variables, unknown_layers
from keras_llm.backend.torch.any_size import fit_any_size, unusual_sizes
from keras_llm.backend.torch.errors import reason_of
from keras_llm.backend.torch.few_rows import prepare_matrices
from keras_llm.backend.torch.graph_passes import call_directly, share_equal, split
from keras_llm.backend.torch.views import merge_views

# Tracing takes about as long as so many steps layer by layer.
STEPS_BEFORE = 16


class Repeated:
    """As in `ops/`. The graph has the weights as inputs, and fits any sizes of the state."""

    def __init__(self, step, layers, example, jit_compile=False):
        self.step, self.layers, self.example = step, layers, example
        self.jit_compile = jit_compile
        self.graph, self.steps = None, 0
        self.reason = next(filter(None, map(unknown_layers, layers)), "")

    def with_weights(self, rows: int, steps: int):
        """As in `ops/`."""
        self.steps += steps
        if self.graph is None and not self.reason and self.steps >= STEPS_BEFORE:
            self.trace()
        graph_step = self.graph and self.graph.step(rows, steps)

        def run(state, most):
            step = graph_step or self.step_of_leaves(state)
            leaves, goes_on = keras.tree.flatten(state), True
            # Without a record of writes and views an operation starts a tenth sooner.
            with torch.inference_mode() if graph_step else contextlib.nullcontext():
                while most and goes_on:
                    *leaves, goes_on = step(*leaves)
                    most -= 1
            return keras.tree.pack_sequence_as(state, leaves), bool(goes_on)

        return run

    def step_of_leaves(self, state):
        """The step, from and to a list of tensors."""

        def step(*leaves):
            new, goes_on = self.step(keras.tree.pack_sequence_as(state, list(leaves)))
            return [*keras.tree.flatten(new), goes_on]

        return step

    def trace(self):
        """Makes the graph; otherwise notes why there is none."""
        try:
            self.graph = StepGraph(self)
        except Exception as error:
            self.reason = reason_of(error)
            warnings.warn(
                "Tokens are generated layer by layer, which is slower than as a graph, because the "
                f"layers could not be traced. {self.reason}",
                stacklevel=2,
            )


class StepGraph:
    """The operations of one step, for states of any size."""

    def __init__(self, repeated: Repeated):
        self.variables = unique_variables(repeated.layers)
        count = len(self.variables)
        numbers = {size for variable in self.variables for size in variable.shape}
        how_many = len(inspect.signature(repeated.example).parameters)
        sizes = unusual_sizes(how_many, numbers)
        with FakeTensorMode(allow_non_fake_inputs=True):
            state = repeated.example(*sizes)
        step = repeated.step_of_leaves(state)

        def call(*tensors):
            values = zip(self.variables, tensors[:count], strict=True)
            # Ids that a step chose are in the vocabulary.
            with deferred_checks(lambda *check: True), keras.StatelessScope(values):
                return step(*tensors[count:])

        module = make_fx(call, tracing_mode="fake", _allow_non_fake_inputs=True)(
            *self.values(), *keras.tree.flatten(state)
        )
        merge_views(module)
        fit_any_size(module.graph, sizes)
        share_equal(module.graph)
        self.module, self.jit_compile, self.variants = module, repeated.jit_compile, {}

    def variant(self, packed: bool):
        """`ahead` and `rest`, as of `split`, with matrices that are packed or not."""
        if packed not in self.variants:
            graph, count = Graph(), len(self.variables)
            graph.output(graph.graph_copy(self.module.graph, {}))
            prepare_matrices(graph, count, packed)
            ahead, rest = split(GraphModule(self.module, graph), count)
            call_directly(rest.graph)
            rest.recompile()
            if self.jit_compile:
                rest.forward = torch.compile(rest.forward, fullgraph=True)
            self.variants[packed] = ahead, rest
        return self.variants[packed]

    def step(self, rows: int, steps: int):
        """The step with the weights of now, from and to a list of tensors."""
        # See `prepare_matrices` for when it pays.
        ahead, rest = self.variant(packed=rows >= 4 and steps >= 64)
        return functools.partial(rest.forward, *ahead(*self.values()))

    def values(self):
        """The variables' tensors."""
        return [variable.value for variable in self.variables]


def compiled(function, layers, jit_compile):
    """As in `ops/`: the function itself, since its shapes seldom come twice."""
    return function


def size_of(length: int) -> int:
    """As in `ops/`: no function is made for one size."""
    return length
