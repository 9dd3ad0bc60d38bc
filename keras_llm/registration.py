"""How a class of ours becomes known to Keras: to `load_model`, and to `compile` by a string."""

import re

import keras

from keras_llm.backend.keras_private import known_names


def register(kind: str):
    """Registers a class for saving, and its name for `compile(loss="...")`.

    As of Keras's own classes there are two such names: the class's, and the same in snake_case.

    Args:
        kind: What the class is to `compile`: `"losses"` or `"metrics"`.

    >>> import keras, keras_llm
    >>> keras.losses.get("masked_sparse_categorical_crossentropy").ignore_index
    -100
    """

    def decorate(cls):
        cls = keras.saving.register_keras_serializable(package="keras_llm")(cls)
        words = re.findall("[A-Z]+(?![a-z])|[A-Z][a-z]+", cls.__name__)
        known_names(kind)[cls.__name__] = known_names(kind)["_".join(words).lower()] = cls
        return cls

    return decorate
