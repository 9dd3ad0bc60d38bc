"""A step that is applied to its own result again and again, as one graph of torch operations."""

import collections
import warnings

import keras
import torch

from keras_llm.backend.layer_settings import unknown_layers
from keras_llm.backend.python_loop import python_loop
from keras_llm.backend.torch.any_size import SizeError
from keras_llm.backend.torch.errors import reason_of
from keras_llm.backend.torch.replay import repeat
from keras_llm.backend.torch.step_graph import StepGraph

# Tracing takes about as long as so many steps layer by layer.
STEPS_BEFORE = 16


class Repeated:
    """As in `ops/`. Where there is no graph of the step, `reason` says why."""

    def __init__(self, step, layers, example, jit_compile):
        self.step, self.layers, self.example = step, layers, example
        # By the shapes of the state, or the only one, which fits all; and the steps of each so far.
        self.graphs, self.steps = {}, collections.Counter()
        self.fits_any_size = True
        self.reason = next(filter(None, map(unknown_layers, layers)), "")

    def with_weights(self, state, rows: int, steps: int):
        """As in `ops/`."""
        graph = None if self.reason else self.graph(state, steps)
        if graph is None:
            return python_loop(self.step), True
        step = graph.with_weights(rows, steps)

        def run(state, most):
            # Without a record of writes and views an operation starts a tenth sooner.
            with torch.inference_mode():
                tensors, goes_on = repeat(step, keras.tree.flatten(state), most)
            return keras.tree.pack_sequence_as(state, tensors), bool(goes_on)

        return run, self.fits_any_size

    def graph(self, state, steps):
        """The graph for such a state, if it pays to have one."""
        any_size = self.fits_any_size
        shapes = "any" if any_size else tuple(x.shape for x in keras.tree.flatten(state))
        self.steps[shapes] += steps
        if shapes not in self.graphs and self.steps[shapes] >= STEPS_BEFORE:
            try:
                example = self.example if any_size else state
                self.graphs[shapes] = StepGraph(self.step, self.layers, example)
            except SizeError:
                self.fits_any_size = False
                return self.graph(state, steps)
            except Exception as error:
                self.reason = reason_of(error)
                warnings.warn(
                    "Tokens are generated layer by layer, which is slower than as a graph, because "
                    f"the layers could not be traced. {self.reason}",
                    stacklevel=2,
                )
        return self.graphs.get(shapes)


def compiled(function, layers, jit_compile):
    """As in `ops/`: the function itself, since its shapes seldom come twice."""
    return function


def size_of(length: int) -> int:
    """As in `ops/`: no function is made for one size."""
    return length
