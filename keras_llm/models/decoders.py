"""The decoders of a model, which are compiled once and kept."""

from keras_llm.backend.layer_settings import LayerSettings
from keras_llm.generation.decoder import Decoder


class Decoders:
    """The decoders of a model, by their options. They are dropped when a layer has changed.

    Args:
        model: A `LanguageModel`.
    """

    def __init__(self, model):
        self.model = model
        self.settings, self.known = None, {}

    def get(self, options, make) -> Decoder:
        """The decoder of these options.

        Args:
            options: All that `make` looks at, hashable.
            make: Returns the first three arguments of `Decoder`.
        """
        model = self.model
        if self.settings is None or not self.settings.unchanged():
            self.settings, self.known = LayerSettings(model), {}
        options = options, bool(model.jit_compile)
        if options not in self.known:
            layers = [model.backbone, model.head]
            self.known[options] = Decoder(*make(), layers, bool(model.jit_compile))
        return self.known[options]
