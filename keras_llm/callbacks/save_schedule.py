"""When a checkpoint is due, and which one is the best."""

import time

from keras_llm.arguments import check_number, check_positive_int


class SaveSchedule:
    """Decides after which steps a checkpoint is written.

    Args:
        every_steps, every_minutes, monitor: As of `TrainingCheckpoint`.

    Attributes:
        best: The best of the monitored numbers, and its checkpoint; None before any.
        saved_at: The steps before the last checkpoint.
    """

    def __init__(self, every_steps, every_minutes, monitor):
        if every_steps is not None:
            check_positive_int(every_steps, "every_steps")
        if every_minutes is not None:
            check_number(every_minutes, "every_minutes", "(0, inf)")
        self.every_steps, self.every_minutes, self.monitor = every_steps, every_minutes, monitor

    def begin(self, steps: int, best: dict | None) -> None:
        """A run begins after so many steps, the best of which is known, if any."""
        # The monitored number since it was last judged.
        self._value, self.best = None, best
        self.note_save(steps)

    def note_save(self, steps: int) -> None:
        """A checkpoint is written after so many steps."""
        self.saved_at, self._time = steps, time.monotonic()

    def is_due(self, steps: int, epoch_ends: bool) -> bool:
        """Whether one is due after so many steps; without an interval, where an epoch ends."""
        if not (self.every_steps or self.every_minutes):
            return epoch_ends
        if self.every_steps and steps // self.every_steps > self.saved_at // self.every_steps:
            return True
        waited = time.monotonic() - self._time
        return bool(self.every_minutes) and waited >= 60 * self.every_minutes

    def look(self, logs: dict | None) -> None:
        """Notes the monitored number, if it is in the logs."""
        if self.monitor is not None and logs:
            self._value = logs.get(self.monitor, self._value)

    def is_better(self, mode: str, name: str) -> bool:
        """Whether there is a new monitored number, and it is the best so far.

        Args:
            mode: `"min"`, `"max"`, or `"auto"`, by the name of the number.
            name: The checkpoint that would be written now.
        """
        value, self._value = self._value, None
        if value is None:
            return False
        value = float(value)
        sign = -1 if mode == "max" or (mode == "auto" and "acc" in self.monitor) else 1
        # NaN is never better than a number.
        if self.best is not None and not sign * value < sign * self.best["value"]:
            return False
        self.best = {"value": value, "name": name}
        return True
