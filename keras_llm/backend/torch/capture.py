"""A layer as a graph of torch operations, without Keras's Python between them."""

import inspect
import warnings

import keras
from torch.fx.experimental.proxy_tensor import make_fx

from keras_llm.backend import ids as id_checks
from keras_llm.backend.keras_private import all_layers, keras_mask
from keras_llm.backend.torch import tensors as facts
from keras_llm.backend.torch.jit_trial import JitTrial, compiled
from keras_llm.backend.torch.views import merge_views

# A graph is made for a shape that is seen again, and for no more shapes than this.
MAX_GRAPHS = 32


class Capture:
    """Calls a layer; from the second time that a shape is seen, by replaying what it did.

    Keras runs Python around every layer and every operation, which for a small model takes longer
    than the arithmetic. A graph has the same operations on the same tensors, so the same numbers,
    and autograd goes through it as ever. A layer is called as it is where a graph could not be
    trusted: `reason` says why.

    Args:
        layer: The layer, built.
        jit_compile: Whether `torch.compile` turns each graph, in one piece, into kernels; `"auto"`
            where that turns out to be faster.
    """

    def __init__(self, layer, jit_compile=False):
        self.layer = layer
        self.jit_compile = jit_compile
        self.graphs = {}
        self.reason = unknown_layers(layer)
        # Whether the last call was answered by a graph.
        self.replayed = False

    def __call__(self, inputs, training):
        """What `layer(inputs, training=training)` returns."""
        self.replayed = False
        if self.reason is not None:
            return self.layer(inputs, training=training)
        tensors = keras.tree.flatten(inputs)
        key = (bool(training), *((tuple(t.shape), t.dtype, t.device) for t in tensors))
        if key in self.graphs:
            graph = self.graphs[key] = self.graphs[key] or self.trace(inputs, training)
            if graph is not None:
                self.replayed = True
                return graph(tensors)
        elif len(self.graphs) < MAX_GRAPHS:
            self.graphs[key] = None
        outputs = self.layer(inputs, training=training)
        if keras_mask(outputs) is not None or self.layer.losses:
            self.reason = "a layer makes a mask or adds a loss"
        return outputs

    def trace(self, inputs, training):
        """The graph of one shape; None, and a reason, where there is none."""
        try:
            return Graph(self.layer, inputs, training, self.jit_compile)
        except Exception as error:
            # Whatever a layer does that a tracer cannot follow, it does as well without one.
            self.reason = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"{self.layer.name!r} runs layer by layer, which is slower than as a graph, "
                f"because it could not be traced. {self.reason}",
                stacklevel=2,
            )
            return None


class Graph:
    """The operations of one call."""

    def __init__(self, layer, inputs, training, jit_compile):
        self.trainable = layer.trainable_variables
        self.others = layer.non_trainable_variables
        self.checks = []
        # Called as usual, a layer without the argument is spared it; called statelessly, it is not.
        takes_training = "training" in inspect.signature(layer.call).parameters
        arguments = {"training": training} if takes_training else {}

        trained, stateful = len(self.trainable), len(self.trainable) + len(self.others)

        # One argument a tensor: lists would be taken apart again in every call.
        def call(*tensors):
            trainable, others = tensors[:trained], tensors[trained:stateful]
            tensors = tensors[stateful:]
            with deferred_checks(tensors, self.checks):
                outputs, updated = layer.stateless_call(
                    trainable,
                    others,
                    keras.tree.pack_sequence_as(inputs, list(tensors)),
                    **arguments,
                )
            for variable, old, new in zip(self.others, others, updated, strict=True):
                if variable.name == "seed_generator_state" and new is not old:
                    # The graph would draw the same noise every time.
                    raise NotImplementedError("a layer draws random numbers through Keras")
            return outputs, updated

        tensors = keras.tree.flatten(inputs)
        self.module = make_fx(call, tracing_mode="fake", _allow_non_fake_inputs=True)(
            *self.values(), *tensors
        )
        merge_views(self.module)
        if jit_compile == "auto":
            self.module = JitTrial(self.module)
        elif jit_compile:
            self.module = compiled(self.module)

    def values(self):
        """The variables' tensors."""
        return [variable.value for variable in (*self.trainable, *self.others)]

    def __call__(self, tensors):
        """The outputs, after the ids have been checked; state is brought up to date."""
        for index, vocab_size, what in self.checks:
            id_checks.check_ids(tensors[index], vocab_size, what)
        values = self.values()
        outputs, updated = self.module(*values, *tensors)
        others = values[len(self.trainable) :]
        for variable, old, new in zip(self.others, others, updated, strict=True):
            if new is not old:
                variable.assign(new)
        return outputs


class deferred_checks:
    """While a graph is traced, ids have no values: those that are inputs are checked at each call.

    Args:
        tensors: The graph's inputs.
        checks: Where `(index of the input, vocab_size, what)` are written down.
    """

    def __init__(self, tensors, checks):
        self.tensors, self.checks = tensors, checks

    def __enter__(self):
        id_checks.deferral = self

    def __exit__(self, *_):
        id_checks.deferral = None

    def accept(self, ids, vocab_size, what):
        """Whether the check will be made."""
        for index, tensor in enumerate(self.tensors):
            if ids is tensor and facts.is_on_host(ids):
                self.checks.append((index, vocab_size, what))
                return True
        return False


def unknown_layers(layer):
    """A reason not to trust a graph of `layer`, or None.

    A graph keeps the Python numbers that it was made with. Keras's layers and ours do not change
    theirs while training; anybody else's may.
    """
    for part in all_layers(layer):
        if type(part).__module__.split(".")[0] not in ("keras", "keras_llm"):
            return f"{type(part).__name__} is not a layer of keras or keras_llm"
    return None
