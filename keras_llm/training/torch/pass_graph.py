"""All that is between a micro-batch and its gradients as one graph, for batches with few logits.

A small model's step is hundreds of operations that take longer to start than to run. With
`jit_compile=True` they are one graph, the loss and the backward pass included: autograd has nothing
to record, and the compiler sees everything at once. Where logits are many, the pass over the
vocabulary takes most of the time and must not hold them (`backend/torch/vocabulary_pass.py`): then
the layers alone are a graph.
"""

import math

import keras
import torch
from keras import ops

from keras_llm.backend.head_matrix import logits_of
from keras_llm.backend.layer_settings import Attributes
from keras_llm.backend.ops import logits_pass
from keras_llm.backend.torch import tensors as facts
from keras_llm.training.torch.captured_graph import CapturedGraph, check_seeds
from keras_llm.training.torch.captured_layer import MAX_GRAPHS, shape_key

# More logits than these, 16 MB, do not stay in the caches.
MAX_LOGITS = 2**22


class PassGraphs:
    """The graphs of a model, by the shapes of a micro-batch.

    Args:
        model: The `TokenModel`.
        loss: Its loss.
        top_k: For the count of correct guesses.
        trained: The `TrainedVariables`.
        policy: Decides which graphs are compiled.
    """

    def __init__(self, model, loss, top_k, trained, policy):
        self.arguments = model, loss, top_k, trained, policy
        self.loss_settings = Attributes(loss)
        self.graphs = {}

    def graph_of(self, inputs) -> "PassGraph | None":
        """The graph for such inputs; None where there is none.

        Args:
            inputs: Tensors, of shapes that the backbone has seen.
        """
        if not self.loss_settings.unchanged():
            # They are numbers of the graphs. Who changes them may do so at every batch.
            return None
        key = shape_key(inputs, keras.tree.flatten(inputs), training=True)
        if key not in self.graphs:
            self.graphs[key] = self.trace(inputs) if len(self.graphs) < MAX_GRAPHS else None
        return self.graphs[key]

    def trace(self, inputs):
        """A new graph; None where the layers' own graph has to do."""
        if not all(facts.is_on_host(t) for t in keras.tree.flatten(inputs)):
            # There the host cannot check labels, and launching is not what takes the time.
            return None
        try:
            return PassGraph(*self.arguments, inputs)
        except Exception:
            # The layers' own graph fails as well, and tells why; or there are too many logits.
            return None


class PassGraph(CapturedGraph):
    """The operations of one shape.

    Attributes:
        shape: What the shape of the logits would be.
        dtype: Of the weights of tokens.
    """

    def __init__(self, model, loss, top_k, trained, policy, inputs):
        super().__init__()
        self.policy, self.trained = policy, trained.variables
        others = [v for v in model.backbone.variables if not any(v is t for t in self.trained)]
        self.others = others
        count, stateful = len(self.trained), len(self.trained) + len(others)
        like = keras.tree.flatten(inputs)

        def call(*tensors):
            leaves = [t.detach().requires_grad_() for t in tensors[:count]]
            *features, labels, weights, scale = tensors[stateful:]
            given = tensors[count:stateful]
            mapping = zip((*self.trained, *others), (*leaves, *given), strict=True)
            with (
                torch.enable_grad(),
                self.checks_noted(features),
                keras.StatelessScope(state_mapping=list(mapping)) as scope,
            ):
                hidden = model.backbone(
                    keras.tree.pack_sequence_as(inputs, features), training=True
                )
                rows = ops.reshape(ops.cast(hidden, self.dtype), (-1, hidden.shape[-1]))
                logits = logits_of(rows, model.head_matrix(), self.dtype)
                sums, nll = reduced(logits, labels, weights, loss, top_k)
                gradients = torch.autograd.grad(sums[0] * scale, leaves, allow_unused=True)
            updated = [scope.get_current_value(variable) for variable in others]
            updated = [n if n is not o else None for n, o in zip(updated, given, strict=True)]
            check_seeds(others, [new is not None for new in updated])
            return [s.detach() for s in sums], nll.detach(), gradients, updated

        self.shape, self.dtype = self.shape_of_logits(model, inputs)
        tokens = math.prod(self.shape[:-1])
        if tokens * self.shape[-1] > MAX_LOGITS:
            raise NotImplementedError("too many logits")
        labels = torch.zeros(tokens, dtype=torch.int64)
        weights = torch.ones(tokens, dtype=getattr(torch, self.dtype))
        # Looked up once: to ask each variable takes a small model a tenth of its step.
        self.values = [variable.value for variable in (*self.trained, *others)]
        self.capture(call, [*self.values, *like, labels, weights, weights[0]], training=True)

    def shape_of_logits(self, model, inputs):
        """The shape that the logits would have, and the dtype in which they are reduced."""
        with torch.no_grad():
            hidden = model.backbone(inputs, training=False)
            vocab_size = model.head_matrix().kernel.shape[1]
        return (*hidden.shape[:-1], vocab_size), logits_pass.upcast_dtype(hidden)

    def __call__(self, inputs, labels, weights, scale):
        """The four sums, the `nll` of each token, and the gradients of the scaled loss.

        Args:
            inputs: The micro-batch, of the shapes that the graph is for.
            labels: `[tokens]`, int64, inside the vocabulary.
            weights: `[tokens]`.
            scale: What the sum of the losses is multiplied by; a scalar tensor.
        """
        features = keras.tree.flatten(inputs)
        self.check(features)
        arguments = *self.values, *features, labels.long(), weights, scale
        sums, nll, gradients, updated = self.policy.call(self.in_use, arguments)
        for variable, new in zip(self.others, updated, strict=True):
            if new is not None:
                variable.assign(new)
        return sums, nll, gradients


def reduced(logits, labels, weights, loss, top_k):
    """The four sums of `TokenStatistics`, and the `nll` of each token."""
    counts = weights != 0
    # What a row of weight 0 holds may be NaN, which no factor makes 0.
    logits = ops.where(counts[:, None], logits, ops.zeros_like(logits))
    nll, lse, mean_logit, _ = logits_pass.reduce_logits(logits, labels, counts, for_loss=True)
    losses = loss.formula(nll, lse, mean_logit, labels, logits.shape[-1])
    correct = ops.zeros_like(nll)
    if top_k:
        hits = logits_pass.in_top_k(logits, labels, counts, None, top_k)
        correct = ops.cast(hits, weights.dtype)
    sums = [ops.sum(logits_pass.weighted(x, weights)) for x in (losses, nll, correct)]
    return [*sums, ops.sum(ops.abs(weights))], logits_pass.weighted(nll, counts)
