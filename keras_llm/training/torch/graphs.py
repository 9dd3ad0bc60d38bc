"""What is made from a model's layers, and kept as long as they stay as they are."""

import torch

from keras_llm.backend.keras_private import all_layers
from keras_llm.backend.layer_settings import LayerSettings
from keras_llm.training.torch.captured_layer import CapturedLayer
from keras_llm.training.torch.pass_graph import PassGraph, PassGraphs
from keras_llm.training.torch.trained_variables import TrainedVariables


class Graphs:
    """The graphs of a model, and the list of its trained variables.

    Args:
        model: The `TokenModel`.
        sums: Its `SharedSums`.
        policy: Decides which graphs are compiled.

    Attributes:
        captured: The backbone, as a `CapturedLayer`; None before it is first called.
        passes: The graphs of whole passes, `PassGraphs`; None before one is asked for.
    """

    def __init__(self, model, sums, policy):
        self.model, self.sums, self.policy = model, sums, policy
        self.captured = self.passes = None
        self._settings = self._trained = None

    def look(self, x):
        """Drops what was made from layers that have changed since.

        Args:
            x: Inputs, for which the layers are built where they are not.
        """
        if not all(layer.built for layer in all_layers(self.model)[1:]):
            with torch.no_grad():
                self.model(x, training=False)
        if self._settings is None or not self._settings.unchanged():
            self._settings = LayerSettings(self.model)
            self._trained = self.captured = self.passes = None

    def trained(self) -> TrainedVariables:
        """The variables that are trainable now."""
        if self._trained is None or not self._trained.is_still_true():
            self._trained, self.passes = TrainedVariables(self.model), None
            if self.captured is not None:
                self.captured.drop_compiled()
        return self._trained

    def last_trained(self) -> TrainedVariables:
        """Those of the last batch, though a callback may have frozen some since."""
        return self._trained or self.trained()

    def hidden_vectors(self, x, training):
        """The backbone's hidden vectors, and what the layers add to the loss of every token."""
        if self.captured is None:
            self.captured = CapturedLayer(self.model.backbone, self.policy)
        hidden = self.captured(x, training)
        # A graph is of layers that add nothing. To ask all of them takes as long as a small graph.
        adds = self._trained is None or self._trained.are_regularized or not self.captured.replayed
        return hidden, self.model.penalty() if adds else 0.0

    def whole_pass(self, x) -> PassGraph | None:
        """The graph of all that is between a batch and its gradients, if there can be one."""
        captured, trained = self.captured, self.trained()
        # The first call of a shape tells.
        if captured is None or not captured.has_seen(x, training=True):
            return None
        if trained.are_regularized or trained.are_watched() or self.model.mixed is not None:
            return None
        if self.passes is None:
            sums = self.sums
            self.passes = PassGraphs(self.model, sums.loss, sums.top_k, trained, self.policy)
        return self.passes.graph_of(x)

    def why_none(self) -> str:
        """Why the layers run one by one; empty where they run as a graph, as far as is known."""
        if self.passes is not None and any(self.passes.graphs.values()):
            return ""
        if self.captured is not None:
            reason = self.captured.reason or self.captured.why_not_trained
        else:
            known = getattr(getattr(self.model, "backbone", None), "why_no_graph", None)
            reason = known() if known else ""
        return reason and f"no graph: {reason}"
