"""A step that is applied to its own result again and again, as one graph of torch operations."""

import warnings

import keras
import torch

from keras_llm.backend.layer_settings import unknown_layers
from keras_llm.backend.python_loop import python_loop
from keras_llm.backend.torch.errors import reason_of
from keras_llm.backend.torch.replay import repeat
from keras_llm.backend.torch.step_graph import StepGraph

# Whether a batch of another size needs nothing new to be made.
ANY_SIZE = True
# Tracing takes about as long as so many steps layer by layer.
STEPS_BEFORE = 16


class Repeated:
    """As in `ops/`. One graph serves all sizes; where there is none, `reason` says why."""

    def __init__(self, step, layers, example, jit_compile):
        self.step, self.arguments = step, (step, layers, example, jit_compile)
        self.graph, self.steps = None, 0
        self.reason = next(filter(None, map(unknown_layers, layers)), "")

    def with_weights(self, rows: int, steps: int):
        """As in `ops/`."""
        self.steps += steps
        if self.graph is None and not self.reason and self.steps >= STEPS_BEFORE:
            self.trace()
        if self.graph is None:
            return python_loop(self.step)
        step = self.graph.with_weights(rows, steps)

        def run(state, most):
            # Without a record of writes and views an operation starts a tenth sooner.
            with torch.inference_mode():
                tensors, goes_on = repeat(step, keras.tree.flatten(state), most)
            return keras.tree.pack_sequence_as(state, tensors), bool(goes_on)

        return run

    def trace(self):
        """Makes the graph; otherwise notes why there is none."""
        try:
            self.graph = StepGraph(*self.arguments)
        except Exception as error:
            self.reason = reason_of(error)
            warnings.warn(
                "Tokens are generated layer by layer, which is slower than as a graph, because the "
                f"layers could not be traced. {self.reason}",
                stacklevel=2,
            )


def compiled(function, layers, jit_compile):
    """As in `ops/`: the function itself, since its shapes seldom come twice."""
    return function


def size_of(length: int) -> int:
    """As in `ops/`: no function is made for one size."""
    return length
