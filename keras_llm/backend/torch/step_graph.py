"""A step from tensors to tensors as one graph of torch operations."""

import functools
import inspect

import keras
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from keras_llm.backend.ids import deferred_checks
from keras_llm.backend.layer_settings import unique_variables
from keras_llm.backend.torch.any_size import fit_any_size, unusual_sizes
from keras_llm.backend.torch.few_rows import best_product, prepare_matrices
from keras_llm.backend.torch.fewer_operations import fuse
from keras_llm.backend.torch.graph_passes import call_directly, share_equal, split
from keras_llm.backend.torch.views import merge_views


class StepGraph:
    """The operations of a step that calls layers.

    It is the same step, without Keras's Python code around each layer and each operation. The
    weights are inputs, and what depends on them alone is computed once for many steps.

    Args:
        step, layers: As of `Repeated`.
        example: A state, for a graph of states of its shapes; or as of `Repeated`, for one of all.

    Raises:
        SizeError: one graph does not fit all.
    """

    def __init__(self, step, layers, example):
        self.variables = unique_variables(layers)
        count, state, sizes = len(self.variables), example, []
        if callable(example):
            numbers = {size for variable in self.variables for size in variable.shape}
            sizes = unusual_sizes(len(inspect.signature(example).parameters), numbers)
            with FakeTensorMode(allow_non_fake_inputs=True):
                state = example(*sizes)

        def call(*tensors):
            values = zip(self.variables, tensors[:count], strict=True)
            # Ids that a step chose are in the vocabulary.
            with deferred_checks(lambda *check: True), keras.StatelessScope(values):
                new, goes_on = step(keras.tree.pack_sequence_as(state, list(tensors[count:])))
            return [*keras.tree.flatten(new), goes_on]

        self.module = make_fx(call, tracing_mode="fake", _allow_non_fake_inputs=True)(
            *self.values(), *keras.tree.flatten(state)
        )
        merge_views(self.module)
        fit_any_size(self.module.graph, sizes)
        share_equal(self.module.graph)
        fuse(self.module.graph)
        self.parts = {}

    def with_weights(self, rows: int, steps: int):
        """The step with the weights of now: `(*tensors) -> [*tensors, goes_on]`.

        Args:
            rows, steps: As of `Repeated.with_weights`.
        """
        product = best_product(rows, steps)
        if product not in self.parts:
            self.parts[product] = self.split(product)
        ahead, rest = self.parts[product]
        return functools.partial(rest.forward, *ahead(*self.values()))

    def split(self, product):
        """What depends on the weights alone, and the rest.

        Args:
            product: One of those of `few_rows`.
        """
        graph, count = Graph(), len(self.variables)
        graph.output(graph.graph_copy(self.module.graph, {}))
        prepare_matrices(graph, count, product)
        ahead, rest = split(GraphModule(self.module, graph), count)
        call_directly(rest.graph)
        rest.recompile()
        return ahead, rest

    def values(self):
        """The variables' tensors."""
        return [variable.value for variable in self.variables]
