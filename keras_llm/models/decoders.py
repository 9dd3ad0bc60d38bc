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
            options: All that `make` looks at, a tuple.
            make: Returns the first four arguments of `Decoder`.
        """
        model = self.model
        if self.settings is None or not self.settings.unchanged():
            self.settings, self.known = LayerSettings(model), {}
        options = *options, model.jit_compile, model.run_eagerly
        if options not in self.known:
            layers = [model.backbone, model.head]
            self.known[options] = Decoder(*make(), layers, model.jit_compile, model.run_eagerly)
        return self.known[options]
