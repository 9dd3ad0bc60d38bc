"""What compile and fit are called on: a backbone, and a head over the vocabulary."""

import keras
from keras import ops

from keras_llm.layers.vocabulary_head import VocabularyHead
from keras_llm.training import TokenStep


@keras.saving.register_keras_serializable(package="keras_llm")
class LanguageModel(TokenStep):
    """A model of tokens in two parts: `logits = head(backbone(inputs))`.

    Called, it returns logits. Compiled with a loss and metrics of `keras_llm`, all that `fit` and
    `evaluate` log is exact per token; on PyTorch they then work on the hidden vectors and never
    hold the logits of a batch. With anything else it is a plain `keras.Model`.

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
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = head

    def call(self, inputs, training=None):
        """Logits `[batch, length, vocab]` of the next token at every position."""
        hidden = self.backbone(inputs, training=training)
        return hidden if self.without_logits else self.head(hidden)

    def compute_output_spec(self, inputs, training=None):
        """Of the two parts, which may know better than a trial what they can take."""
        if not self.call_ends_with_head():
            return super().compute_output_spec(inputs, training=training)
        return self.head.compute_output_spec(self.backbone.compute_output_spec(inputs))

    def call_ends_with_head(self):
        """Whether predictions are what the head returns: a subclass may do more to them."""
        return type(self).call is LanguageModel.call

    def head_is_matrix(self):
        """Whether logits are the head's kernel and bias, and no subclass has a use for them."""
        cls, head = type(self), self.head
        plain = (
            self.call_ends_with_head()
            and cls.compute_loss is TokenStep.compute_loss
            and cls.compute_metrics is TokenStep.compute_metrics
        )
        linear = isinstance(head, VocabularyHead) or (
            type(head) is keras.layers.Dense and head.activation is keras.activations.linear
        )
        return plain and linear and head.built and head.activity_regularizer is None

    def head_matrix(self):
        """The head's kernel and bias, unless a subclass or another kind of head does more."""
        if not self.head_is_matrix():
            return None
        head = self.head
        bias = None if head.bias is None else ops.convert_to_tensor(head.bias)
        return ops.convert_to_tensor(head.kernel), bias

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
