"""Whether the layers of a model are still those that a graph was made from."""

import operator

from keras_llm.backend.keras_private import all_layers

# Changes with every switch between training and evaluation, and is handed to a graph's layers.
# Which variables are trained is looked up for each batch. The last two are Keras's notes.
IGNORED = {"training", "_trainable", "_called", "_jit_compile"}


class LayerSettings:
    """A record of all attributes of all layers inside a model, to be compared later.

    It sees a setting that was assigned, a layer or variable that was added or replaced (LoRA,
    quantisation), a hook that was registered. It does not see what changes inside an attribute
    that is neither a list, a dictionary nor a set.

    Args:
        model: The model; its own attributes do not count, only those of the layers inside.
    """

    def __init__(self, model):
        self.model = model
        self.layers = all_layers(model)[1:]
        self.attributes = [Attributes(layer) for layer in self.layers]

    def unchanged(self) -> bool:
        """Whether all attributes are what they were."""
        same_layers = all_layers(self.model)[1:] == self.layers
        return same_layers and all(attributes.unchanged() for attributes in self.attributes)


class Attributes:
    """The attributes of one layer, compared without a loop in Python: this runs in training."""

    def __init__(self, layer):
        self.now = vars(layer)
        self.count = len(self.now)
        names = [name for name in self.now if name not in IGNORED]
        self.take = operator.itemgetter(*names)
        self.values = tuple(copied(value) for value in self.take(self.now))

    def unchanged(self) -> bool:
        """Whether they are what they were."""
        try:
            # A tuple compares identities first: == is asked only of what has been replaced.
            return len(self.now) == self.count and self.take(self.now) == self.values
        except (KeyError, RuntimeError, TypeError, ValueError):
            # An attribute is gone, or an array was replaced, whose == is not one truth value.
            return False


def copied(value):
    """The value, safe from changes in place."""
    return value.copy() if isinstance(value, dict | list | set) else value
