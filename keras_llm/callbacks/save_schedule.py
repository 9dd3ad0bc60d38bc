"""When a checkpoint is due, and which one is the best."""

import time


class SaveSchedule:
    """Decides after which steps a checkpoint is written.

    Args:
        every_steps, every_minutes, monitor: As of `TrainingCheckpoint`.
    """

    def __init__(self, every_steps, every_minutes, monitor):
        self.every_steps, self.every_minutes, self.monitor = every_steps, every_minutes, monitor
        # The monitored number since it was last judged; the best one and its checkpoint.
        self._value, self.best = None, None

    def note_save(self, steps: int) -> None:
        """A checkpoint is written after so many steps, or the run begins there."""
        self.saved_at, self._time = steps, time.monotonic()

    def is_due(self, steps: int) -> bool:
        """Whether one is due after so many steps."""
        if self.every_steps and steps // self.every_steps > self.saved_at // self.every_steps:
            return True
        waited = time.monotonic() - self._time
        return bool(self.every_minutes) and waited >= 60 * self.every_minutes

    def is_by_epochs(self) -> bool:
        """Whether one is due after every epoch."""
        return not (self.every_steps or self.every_minutes)

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
