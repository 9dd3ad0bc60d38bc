"""Warm-up, then one over the square root of the step."""

from typing import ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_positive_int
from keras_llm.schedules.warmup_schedule import WarmupSchedule


@keras.saving.register_keras_serializable(package="keras_llm")
class WarmupInverseSquareRoot(WarmupSchedule):
    """A linear warm-up, then a decay with one over the square root of the step, without an end.

        lr(step) = learning_rate / sqrt(1 + (step - warmup_steps) / timescale)

    With the default `timescale` this is `learning_rate * sqrt(warmup_steps / step)`, the schedule
    of the first Transformer (Vaswani et al., "Attention Is All You Need", 2017). Equals Hugging
    Face's `get_inverse_sqrt_schedule`.

    Example:
    >>> import keras_llm
    >>> schedule = keras_llm.schedules.WarmupInverseSquareRoot(1e-3, warmup_steps=100)
    >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 400, 10_000)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0001]

    Args:
        learning_rate: The peak learning rate.
        warmup_steps: Updates until the peak; 0 starts there.
        timescale: Updates after the peak until the learning rate has fallen by a factor of
            sqrt(2). None takes `warmup_steps`, or 10,000 without a warm-up.

    Raises:
        ValueError: an argument is out of range or not a number.
    """

    decay_name = "inverse square root decay"
    notes: ClassVar[dict[str, str]] = {
        **WarmupSchedule.notes,
        "timescale": "updates after the peak until it is divided by the square root of 2",
    }

    def __init__(self, learning_rate: float, warmup_steps: int, timescale: int | None = None):
        super().__init__(learning_rate, warmup_steps)
        if timescale is None:
            timescale = self.warmup_steps or 10_000
        self.timescale = check_positive_int(timescale, "timescale")

    def decay(self, step):
        """From 1 at the warm-up's end towards 0."""
        # During the warm-up this is computed too, and not used: relu keeps the root's argument
        # positive there.
        return ops.rsqrt(1 + ops.relu(step - self.warmup_steps) / self.timescale)

    def shown_steps(self):
        """Updates until half of the peak."""
        return self.warmup_steps + 3 * self.timescale
