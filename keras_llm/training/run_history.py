"""What `fit` returns: the numbers of each epoch, and those of each log point."""

from typing import Any

import keras


class RunHistory(keras.callbacks.History):
    """Keras's `History`, with the run's log points.

    Attributes:
        epoch, history: As in Keras: numbers of epochs, and a list for each name.
        steps: The log points, a dictionary each, in the order of their `"step"`; see `StepLog`.
            `pandas.DataFrame(history.steps)` is a table of them. Empty with a loss of Keras.
    """

    def __init__(self):
        super().__init__()
        self.epoch, self.steps = [], []

    def follow(self, log) -> None:
        """Shows the points of a `StepLog` from now on."""
        self.steps = [] if log is None else log.points

    def on_train_begin(self, logs=None):
        """Keeps what an earlier process has recorded: Keras would forget the numbers of epochs."""

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far; the points belong to the `StepLog`."""
        history = {
            name: [float(value) for value in values] for name, values in self.history.items()
        }
        return {"epoch": list(self.epoch), "history": history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the epochs that `state_dict` returned."""
        self.epoch = list(state["epoch"])
        self.history = {name: list(values) for name, values in state["history"].items()}
