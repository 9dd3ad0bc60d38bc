"""What compile and fit are called on: a backbone, and a head over the vocabulary."""

import keras

from keras_llm.training import TokenStep


@keras.saving.register_keras_serializable(package="keras_llm")
class LanguageModel(TokenStep):
    """A model of tokens: `head(backbone(inputs))`."""

    def __init__(self, backbone, head, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = head

    def call(self, inputs, training=None):
        """Logits `[batch, length, vocab]` of the next token at every position."""
        return self.head(self.backbone(inputs, training=training))

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
