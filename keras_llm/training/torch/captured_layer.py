"""A layer as one captured graph of torch operations, replayed without Keras's Python code."""

import inspect
import warnings
from collections.abc import Mapping

import keras

from keras_llm.backend.keras_private import all_layers, keras_mask, recomputes
from keras_llm.backend.layer_settings import unknown_layers
from keras_llm.backend.torch.errors import reason_of
from keras_llm.training.torch.captured_graph import CapturedGraph, check_seeds
from keras_llm.training.torch.compile_policy import CompilePolicy

# The second call with a shape is traced, for at most so many shapes.
MAX_GRAPHS = 32


class CapturedLayer:
    """Calls a layer; from the second call with a shape on, replays its captured graph.

    Keras runs Python code around every layer and every operation, which takes longer than the
    arithmetic of a small model. A graph has the same operations on the same tensors, so it gives
    the same numbers, and autograd differentiates it as usual. If a graph might differ from the
    layer, the layer is called directly: `reason` says why. A graph does not notice a change of the
    layer; after one, make a new `CapturedLayer`.

    Args:
        layer: The layer, built.
        policy: Decides which graphs are compiled.

    Attributes:
        reason: Why the layer is called directly.
        why_not_trained: Why it is in training mode.
    """

    def __init__(self, layer, policy: CompilePolicy):
        self.layer = layer
        self.policy = policy
        self.graphs = {}
        own_reason = getattr(layer, "why_no_graph", None)
        self.reason = own_reason() if own_reason else unknown_layers(layer)
        self.why_not_trained = why_not_trained(layer)
        # Whether the last call was answered by a graph.
        self.replayed = False

    def __call__(self, inputs, training: bool):
        """What `layer(inputs, training=training)` returns.

        Args:
            inputs: Tensors on the layer's device, however nested: an array of another kind would
                be a constant of the graph.
            training: Whether layers run in training mode.
        """
        self.replayed = False
        if self.reason:
            return self.layer(inputs, training=training)
        tensors = keras.tree.flatten(inputs)
        key = shape_key(inputs, tensors, training)
        if key in self.graphs and not (training and self.why_not_trained):
            graph = self.graphs[key] = self.graphs[key] or self.trace(inputs, training)
            if graph is not None:
                self.replayed = True
                return graph(tensors, self.policy)
        outputs = self.layer(inputs, training=training)
        # Not of inputs that the layer refuses.
        if key not in self.graphs and len(self.graphs) < MAX_GRAPHS:
            self.graphs[key] = None
        if keras_mask(outputs) is not None or self.layer.losses:
            self.reason = "a layer makes a mask or adds a loss"
        return outputs

    def has_seen(self, inputs, training: bool) -> bool:
        """Whether the next call with these shapes is answered by a graph, as far as is known."""
        key = shape_key(inputs, keras.tree.flatten(inputs), training)
        return not self.reason and key in self.graphs

    def drop_compiled(self):
        """Has the compiled graphs made again, after weights were frozen or thawed.

        `torch.compile` compiles one graph for few choices of trained weights, then it fails.
        """
        for key, graph in self.graphs.items():
            if graph is not None and graph.in_use.is_compiled:
                self.graphs[key] = None

    def trace(self, inputs, training):
        """The graph of one shape; None, and a reason, where there is none."""
        try:
            return Graph(self.layer, inputs, training)
        except Exception as error:
            # What the tracer cannot follow still runs layer by layer.
            self.reason = reason_of(error)
            warnings.warn(
                f"{self.layer.name!r} runs layer by layer, which is slower than as a graph, "
                f"because it could not be traced. {self.reason}",
                stacklevel=2,
            )
            return None


def why_not_trained(layer) -> str:
    """Why a graph of the forward pass is not trained; empty where it is.

    Keras defines the gradient through a quantised product, which rounds: autograd would find 0. And
    a graph would keep for the backward pass what a layer in a `RematScope` computes again.
    """
    for part in all_layers(layer):
        if getattr(part, "quantization_mode", None) is not None:
            return f"{part.name} is quantised, and has a gradient of its own"
        if recomputes(part):
            return f"{part.name} was made in a RematScope, and computes again in the backward pass"
    return ""


def shape_key(inputs, tensors, training: bool) -> tuple:
    """What a graph is made for: inputs of such names, whose tensors are of such shapes."""
    shapes = ((tuple(t.shape), t.dtype, t.device) for t in tensors)
    return (bool(training), names_of(inputs), *shapes)


def names_of(inputs):
    """How tensors are nested, and by which names: tensors of other names are other inputs."""
    if isinstance(inputs, Mapping):
        return tuple((name, names_of(inputs[name])) for name in sorted(inputs, key=str))
    if isinstance(inputs, list | tuple):
        return tuple(map(names_of, inputs))
    return None


class Graph(CapturedGraph):
    """The operations of one call of a layer."""

    def __init__(self, layer, inputs, training):
        super().__init__()
        self.trainable = layer.trainable_variables
        self.others = layer.non_trainable_variables
        # `stateless_call`, unlike a call, passes the argument to a layer that does not take it.
        takes_training = "training" in inspect.signature(layer.call).parameters
        arguments = {"training": training} if takes_training else {}

        trained, stateful = len(self.trainable), len(self.trainable) + len(self.others)

        # One argument a tensor: lists would be taken apart again in every call.
        def call(*tensors):
            trainable, others = tensors[:trained], tensors[trained:stateful]
            tensors = tensors[stateful:]
            with self.checks_noted(tensors):
                outputs, updated = layer.stateless_call(
                    trainable,
                    others,
                    keras.tree.pack_sequence_as(inputs, list(tensors)),
                    **arguments,
                )
            pairs = zip(updated, others, strict=True)
            check_seeds(self.others, [new is not old for new, old in pairs])
            return outputs, updated

        self.capture(call, [*self.values(), *keras.tree.flatten(inputs)], bool(training))

    def values(self):
        """The variables' tensors."""
        return [variable.value for variable in (*self.trainable, *self.others)]

    def __call__(self, tensors, policy: CompilePolicy):
        """The outputs, after the ids have been checked; state is brought up to date."""
        self.check(tensors)
        values = self.values()
        outputs, updated = policy.call(self.in_use, [*values, *tensors])
        others = values[len(self.trainable) :]
        for variable, old, new in zip(self.others, others, updated, strict=True):
            if new is not old:
                variable.assign(new)
        return outputs
