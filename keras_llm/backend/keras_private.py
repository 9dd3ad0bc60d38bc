"""What Keras has no public name for; `tests/backend/test_keras_private.py` guards it."""

import importlib


def keras_mask(tensor):
    """The mask that `Embedding(mask_zero=True)` and its like hang on a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def all_layers(layer) -> list:
    """A layer and all layers inside it. Where Keras cannot tell, the list holds an unknown one."""
    flatten = getattr(layer, "_flatten_layers", None)
    return [layer, object()] if flatten is None else list(flatten())


def known_names(kind: str) -> dict:
    """The table in which `keras.losses.get` or `keras.metrics.get` looks a string up.

    Neither looks at `keras.saving.get_custom_objects()`. Without the table (Keras moved it) our
    classes still work, only not by their strings.

    Args:
        kind: `"losses"` or `"metrics"`.
    """
    module = importlib.import_module(f"keras.src.{kind}")
    return getattr(module, "ALL_OBJECTS_DICT", {})
