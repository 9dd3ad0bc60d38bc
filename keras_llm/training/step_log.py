"""The numbers of a run every few steps: a curve has a point long before an epoch is over."""

import time
from typing import Any

import numpy as np

# Steps between two log points.
EVERY = 10


class StepLog:
    """The log points of a run: its numbers over the steps since the last point.

    A point is a dictionary with

        step                batches so far
        epoch               epochs that are over
        tokens              tokens that counted so far
        seconds             of training so far, without evaluations
        loss and metrics    over the tokens since the last point, not since the epoch's beginning
        gradient_norm       global norm before clipping, the mean over the updates since then
        learning_rate       of the next update
        tokens_per_second   since the last point

    and, where there was an evaluation after that step, its `val_` numbers. Points are made every 10
    steps, for an evaluation, and at the end of an epoch. Sums only grow within an epoch: those of a
    point are the sums now minus the sums at the last point. On a GPU a point's sums are copied
    while the device goes on, and read when the next point is made, so that nothing waits.

    Args:
        model: A model that has a `step`.
        tell: Called with a step and the numbers that were added to its point.
    """

    def __init__(self, model, tell):
        self.step, self.tell = model.step, tell
        self.points, self.tokens, self.seconds = [], 0.0, 0.0
        # The sums at the last point, None at an epoch's beginning.
        self._before = None
        # What was copied for a point that is not made yet.
        self._pending = []
        self._last, self._clock = 0, None

    def go_on(self):
        """Starts the clock, where it stands."""
        if self._clock is None:
            self._clock = time.perf_counter()

    def count(self, position, batches: int):
        """Counts a step, and makes a point where one is due.

        Args:
            position: The run's `Position`.
            batches: How many batches the step had.
        """
        if position.steps // EVERY > (position.steps - batches) // EVERY:
            self._copy(position)
            self._make(leave=1 if self.step.reads_late else 0)

    def end_epoch(self, position):
        """Makes the epoch's last point."""
        self.make_point(position)
        self._before = None
        self.pause()

    def make_point(self, position):
        """Makes the point of a step, for other numbers of it."""
        if position.steps > self._last:
            self._copy(position)
        self._make()

    def flush(self):
        """Makes the points whose sums have been copied."""
        self._tick()
        self._make()

    def add(self, step: int, logs: dict[str, float]):
        """Adds numbers to the point of a step."""
        if not self.points or self.points[-1]["step"] != step:
            self.points.append({"step": step})
        self.points[-1] |= logs
        self.tell(step, logs)

    def pause(self):
        """Stops the clock until `go_on`: an evaluation is not training."""
        self._tick()
        self._clock = None

    def state_dict(self) -> dict[str, Any]:
        """The points so far and the beginning of the next one."""
        before = None if self._before is None else [np.asarray(s).tolist() for s in self._before]
        return {
            "points": [dict(point) for point in self.points],
            "tokens": self.tokens,
            "seconds": self.seconds,
            "before": before,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after what `state_dict` returned."""
        self.points[:] = [dict(point) for point in state["points"]]
        self.tokens, self.seconds, self._last = state["tokens"], state["seconds"], state["last"]
        before = state["before"]
        self._before = None if before is None else [np.asarray(s, "float64") for s in before]

    def _tick(self):
        if self._clock is not None:
            now = time.perf_counter()
            self.seconds, self._clock = self.seconds + now - self._clock, now

    def _copy(self, position):
        self._tick()
        self._last = position.steps
        seconds = self.step.of_first(self.seconds)
        self._pending.append((position, seconds, self.step.running_sums()))

    def _make(self, leave: int = 0):
        while len(self._pending) > leave:
            position, seconds, read = self._pending.pop(0)
            sums, learning_rate = read()
            before = [0.0] * len(sums) if self._before is None else self._before
            *grown, norm, updates = (now - then for now, then in zip(sums, before, strict=True))
            tokens, logs = self.step.sums.log_of(grown)
            if updates:
                logs["gradient_norm"] = float(norm / updates)
            took = seconds - (self.points_with_seconds() or 0.0)
            self._before, self.tokens = sums, self.tokens + tokens
            point = {"epoch": position.epoch, "tokens": self.tokens, "seconds": seconds}
            point |= logs | {"learning_rate": learning_rate}
            if took > 0:
                point["tokens_per_second"] = tokens / took
            self.add(position.steps, point)

    def points_with_seconds(self) -> float | None:
        """The training time at the last point that has one."""
        return next((p["seconds"] for p in reversed(self.points) if "seconds" in p), None)
