"""Where Keras's `fit` tells a step that epochs begin and end."""

import keras

from keras_llm.checks.sanity_warning import warn
from keras_llm.training.user_callbacks import callback_list


class StepCallback(keras.callbacks.Callback):
    """Tells the step of a model what `fit` does, before any other callback acts.

    It also tells callbacks with `mode="auto"` whether more or less of one of our metrics is
    better: Keras asks only the metrics that it keeps itself.

    Args:
        step: The model's `Step`.
        callbacks: Those that `fit` was given.
    """

    def __init__(self, step, callbacks):
        super().__init__()
        self.step, self.callbacks = step, callbacks

    def on_train_begin(self, logs=None):
        """Drops what an interrupted `fit` left."""
        self.step.begin_fit(self.callbacks)
        directions = {m.name: getattr(m, "_direction", None) for m in self.step.sums.metrics}
        directions["loss"] = "down"
        every = callback_list(self.callbacks)
        # An `Evaluation` may have a name, which is in those of its numbers.
        prefixes = ["val_", *(getattr(one, "prefix", "") for one in every)]
        # An `Evaluation` has callbacks of its own.
        for callback in [
            *every,
            *(inner for one in every for inner in getattr(one, "callbacks", [])),
        ]:
            monitor = str(getattr(callback, "monitor", ""))
            names = [monitor.removeprefix(prefix) for prefix in prefixes]
            direction = next(filter(None, map(directions.get, names)), None)
            if direction is not None and getattr(callback, "mode", None) == "auto":
                callback.mode = {"up": "max", "down": "min"}[direction]

    def on_train_end(self, logs=None):
        """Gives all processes what they have divided."""
        self.step.end_training()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the epoch's sums."""
        self.step.begin_epoch(self.model.run.batches_to_come())

    def on_epoch_end(self, epoch, logs=None):
        """Ends the epoch, where no validation has done so, and tells what compiling cost."""
        self.step.end_epoch()
        message = self.step.compilation_message()
        if message:
            warn(message)
