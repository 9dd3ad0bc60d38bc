"""What compile and fit are called on: a backbone, and a head over the vocabulary."""

import keras
from keras import ops

from keras_llm.backend import HeadMatrix
from keras_llm.backend.keras_private import all_layers
from keras_llm.layers.vocabulary_head import VocabularyHead
from keras_llm.training import TokenModel


@keras.saving.register_keras_serializable(package="keras_llm")
class LanguageModel(TokenModel):
    """A model of tokens in two parts: `logits = head(backbone(inputs))`.

    Called, it returns logits. Compiled with a loss and metrics of `keras_llm`, all that `fit` and
    `evaluate` log is exact per token, and they never hold the logits of a batch. With anything else
    it is a plain `keras.Model`.

    Args:
        backbone: A layer or model from the inputs to hidden vectors `[batch, length, d_model]`.
        head: A layer from those to logits `[batch, length, vocab]`: a
            `keras_llm.layers.VocabularyHead`, a linear `keras.layers.Dense`, or any other.

    Example:
    >>> import keras, numpy as np
    >>> from keras_llm import losses, metrics, models
    >>> model = models.LanguageModel(keras.layers.Embedding(10, 4), keras.layers.Dense(10))
    >>> model.compile(
    ...     optimizer="sgd",
    ...     loss=losses.MaskedSparseCategoricalCrossentropy(ignore_index=0),
    ...     metrics=[metrics.Perplexity(ignore_index=0)],
    ... )
    >>> x, y = np.array([[1, 2, 3, 4]]), np.array([[2, 3, 4, 0]])
    >>> logs = model.evaluate(x, y, verbose=0, return_dict=True)
    >>> bool(abs(np.log(logs["perplexity"]) - logs["loss"]) < 1e-5)
    True
    """

    def __init__(self, backbone, head, **kwargs):
        for name, part in {"backbone": backbone, "head": head}.items():
            if not callable(part):
                raise TypeError(f"{name} must be a Keras layer. Received: {name}={part!r}")
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = head

    def call(self, inputs, training=None):
        """Logits `[batch, length, vocab]` of the next token at every position."""
        return self.head(self.backbone(inputs, training=training))

    def compute_output_spec(self, inputs, training=None):
        """Of the two parts, which may know better than a trial what they can take."""
        if not self.call_ends_with_head():
            return super().compute_output_spec(inputs, training=training)
        return self.head.compute_output_spec(self.backbone.compute_output_spec(inputs))

    def with_host_facts(self, x, on_host):
        """The inputs with what the backbone has to know of them on the host, if it has to."""
        add = getattr(self.backbone, "with_host_facts", None)
        return x if add is None else add(x, on_host)

    def call_ends_with_head(self) -> bool:
        """Whether predictions are what the head returns: a subclass may do more to them."""
        return type(self).call is LanguageModel.call

    def why_logits(self) -> str:
        """Why the logits cannot be computed from `head_matrix`; empty where they can."""
        cls = type(self)
        for name in ("call", "compute_loss", "compute_metrics"):
            if getattr(cls, name) is not getattr(LanguageModel, name):
                return f"{cls.__name__} has a {name} of its own"
        return self.why_head_is_no_matrix()

    def why_head_is_no_matrix(self) -> str:
        """Why `head_matrix` is not all that the head does; empty where it is."""
        head = self.head
        what = f"the head, a {type(head).__name__},"
        if not isinstance(head, VocabularyHead) and type(head) is not keras.layers.Dense:
            return f"{what} is not known to be a matrix"
        if getattr(head, "activation", None) not in (None, keras.activations.linear):
            return f"{what} has an activation"
        if head.quantization_mode is not None:
            return f"{what} is quantised"
        if head.activity_regularizer is not None:
            return f"{what} has an activity regularizer"
        return "" if head.built else f"{what} is not built yet"

    def has_untrained_layers(self) -> bool:
        """Whether weights are quantised, and nothing beside them is trained in their place."""
        layers = [layer for layer in all_layers(self) if getattr(layer, "quantization_mode", None)]
        return any(not getattr(layer, "lora_enabled", False) for layer in layers)

    def head_matrix(self) -> HeadMatrix:
        """The head's kernel `[d_model, vocab]`, and its bias and soft cap, if it has any."""
        bias = None if self.head.bias is None else ops.convert_to_tensor(self.head.bias)
        # Keras's Dense knows no cap.
        soft_cap = getattr(self.head, "soft_cap", None)
        return HeadMatrix(ops.convert_to_tensor(self.head.kernel), bias, soft_cap)

    def explain(self, batch=None, show: bool = True):
        """What `compile` decided, on one screen: see `keras_llm.explain`."""
        # Imported here, since both import the parts of a model.
        from keras_llm.explanation.explain import explain

        return explain(self, batch, show)

    def trace(self, batch, tokenizer=None, tokens: int = 12, show: bool = True):
        """One training step, stage by stage, and undone: see `keras_llm.trace`."""
        from keras_llm.tracing.trace import trace

        return trace(self, batch, tokenizer, tokens, show)

    def get_config(self):
        """The backbone and the head, serialised."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "backbone": serialize(self.backbone),
            "head": serialize(self.head),
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the model from `get_config`'s dictionary."""
        deserialize = keras.saving.deserialize_keras_object
        config = {k: deserialize(v) if k in ("backbone", "head") else v for k, v in config.items()}
        return cls(**config)
