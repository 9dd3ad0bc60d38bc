"""A `keras.Model` with a `Step`: its weights as arrays, and its files."""

import contextlib

import keras

from keras_llm.distribution import world
from keras_llm.training.step_model import StepModel
from keras_llm.training.whole_weights import with_whole_weights


class StoredModel(StepModel):
    """A `StepModel` that is whole where it is read, written or saved.

    In the middle of a `fit` several processes may divide its weights.
    """

    @with_whole_weights
    def get_weights(self):
        """Keras's `get_weights`."""
        return super().get_weights()

    @with_whole_weights
    def set_weights(self, weights):
        """Keras's `set_weights`."""
        super().set_weights(weights)

    @with_whole_weights
    def load_weights(self, *arguments, **named):
        """Keras's `load_weights`."""
        super().load_weights(*arguments, **named)

    @with_whole_weights
    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Keras's `save`; of several processes the first writes, and the others wait for it."""
        whole = contextlib.nullcontext() if self.step is None else self.step.whole_state()
        with whole, world().first_alone(f"save {filepath}"):
            if world().is_first:
                super().save(filepath, overwrite, zipped, **kwargs)

    @with_whole_weights
    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Keras's `save_weights`; of several processes the first writes, the others wait."""
        with world().first_alone(f"save weights {filepath}"):
            if world().is_first:
                super().save_weights(filepath, overwrite, **kwargs)

    def get_compile_config(self):
        """What `compile` was called with, serialised."""
        if self.step is None:
            return super().get_compile_config()
        self.step.give_back_accumulation()
        try:
            config = super().get_compile_config()
        finally:
            self.step.take_over_accumulation()
        serialize = keras.saving.serialize_keras_object
        arguments = {"loss": self.loss, **self.step.sums.arguments}
        config |= {key: serialize(value) for key, value in arguments.items()}
        return config | {"micro_batch_size": self.step.micro_batch_size}

    def compile_from_config(self, config):
        """Compiles as `get_compile_config` says."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)
