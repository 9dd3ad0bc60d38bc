"""Whether the layers of a model are, and still are, those that a graph can be made from."""

import operator

from keras_llm.backend.keras_private import all_layers

# `training` is an argument of a graph, `_trainable` is looked up for each batch, `_losses` are what
# a call has added, and the others change without an effect on what a layer computes.
IGNORED = {"training", "_trainable", "_called", "_jit_compile", "_losses", "_parent_path"}
# Packages whose layers keep what changes while training in variables, and no Python numbers. Not so
# anybody's subclass of one: its module is another.
TRUSTED = ("keras", "keras_llm", "keras_hub")


class LayerSettings:
    """A record of all attributes of all layers inside a model.

    Comparing it later detects an assigned setting, an added or replaced layer or variable (LoRA,
    quantisation), and a registered hook. It does not detect a change inside an attribute that is
    not a list, a dictionary or a set.

    Args:
        model: The model. Its own attributes are left out.
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
    """The attributes of a layer or a loss, compared without a Python loop, which would be slow."""

    def __init__(self, layer):
        self.now = vars(layer)
        self.count = len(self.now)
        names = [name for name in self.now if name not in IGNORED]
        self.take = operator.itemgetter(*names)
        self.values = tuple(copied(value) for value in self.take(self.now))

    def unchanged(self) -> bool:
        """Whether they are what they were."""
        try:
            # A tuple compares identities first: == runs only for replaced attributes.
            return len(self.now) == self.count and self.take(self.now) == self.values
        except (KeyError, RuntimeError, TypeError, ValueError):
            # An attribute is missing, or an array was replaced, whose == is an array.
            return False


def copied(value):
    """The value, safe from changes in place."""
    return value.copy() if isinstance(value, dict | list | set) else value


def unknown_layers(layer) -> str:
    """A reason not to trust a graph of `layer`; empty where there is none.

    A graph keeps the Python numbers that it was made with. The layers of `TRUSTED` do not change
    theirs while training; anybody else's may.
    """
    for part in all_layers(layer):
        if type(part).__module__.split(".")[0] not in TRUSTED:
            return f"{type(part).__name__} is not a layer of {' or '.join(TRUSTED)}"
    return ""


def unique_variables(layers) -> list:
    """All variables of layers, each once."""
    return list({id(v): v for layer in layers for v in layer.variables}.values())
