"""The logs of a step, computed when somebody looks."""

import time

import keras

from keras_llm.training.user_callbacks import acts, callback_list

# Between two looks of the progress bar, in seconds.
INTERVAL = 0.5


class LogThrottle:
    """Decides after which steps the logs are computed.

    Keras makes a float of every value in the logs after every step, for which a GPU has to be
    waited for, and hands them to the callbacks. Here that happens after every step only where a
    callback reads the logs of every step; for the progress bar now and then is enough. Where
    several processes train, the logs are of all of them, after the same steps in each.

    Args:
        callbacks: What `fit` or `evaluate` was given.
        phase: `"train"` or `"test"`.
        every: So many steps apart; None for so much time.
    """

    def __init__(self, callbacks, phase: str, every: int | None = None):
        users = [
            callback
            for callback in callback_list(callbacks)
            if not isinstance(callback, keras.callbacks.ProgbarLogger)
            and not getattr(callback, "reads_logs_when_they_are_computed", False)
        ]
        self.computes_always = acts(users, "on_batch_end", f"on_{phase}_batch_end")
        # Whoever acts between two batches may change a layer.
        self.layers_may_change = self.computes_always or acts(
            users, "on_batch_begin", f"on_{phase}_batch_begin"
        )
        self.every, self.steps = every, 0
        self.known, self.last = None, 0.0

    def begin_epoch(self):
        """The next step's logs are computed."""
        self.last, self.steps = 0.0, 0

    def logs(self, model) -> dict:
        """The model's metrics by name, now or when they are asked for."""
        now = time.monotonic()
        is_due = self.known is None or self.computes_always
        if self.every is None:
            is_due |= now - self.last >= INTERVAL
        else:
            is_due |= self.steps % self.every == 0
        self.steps += 1
        if is_due:
            logs = model.get_metrics_result()
            self.known, self.last = dict(logs), now
            return logs
        # What all processes would have to compute is not computed where one of them asks.
        return LazyLogs(model, self.known, is_known=self.every is not None)


class LazyLogs(dict):
    """The model's metrics by name, none of them computed before it is asked for.

    False like an empty dictionary, so that Keras passes an empty one on: its progress bar then goes
    on showing the values of the last time.

    Args:
        model: The model.
        last: The values of the last time.
        is_known: Whether these are what somebody who asks gets.
    """

    def __init__(self, model, last, is_known: bool):
        super().__init__(last)
        self.model, self.is_known = model, is_known

    def __bool__(self):
        return False

    def __getitem__(self, name):
        if not self.is_known:
            self.is_known = True
            self.update(self.model.get_metrics_result())
        return super().__getitem__(name)

    def __iter__(self):
        # Defined, so that `dict(logs)` and `{**logs}` ask for the values.
        return super().__iter__()

    def get(self, name, default=None):
        """The value of a metric."""
        try:
            return self[name]
        except KeyError:
            return default

    def values(self):
        """All values."""
        return [self[name] for name in self]

    def items(self):
        """All names with their values."""
        return [(name, self[name]) for name in self]
