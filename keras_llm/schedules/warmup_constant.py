"""Warm-up, then no decay."""

import keras
from keras import ops

from keras_llm.schedules.warmup_schedule import WarmupSchedule


@keras.saving.register_keras_serializable(package="keras_llm")
class WarmupConstant(WarmupSchedule):
    """A linear warm-up, then the peak, without an end.

        lr(step) = learning_rate * min(1, step / warmup_steps)

    Equals Hugging Face's `get_constant_schedule_with_warmup`.

    Example:
    >>> import keras_llm
    >>> schedule = keras_llm.schedules.WarmupConstant(1e-3, warmup_steps=100)
    >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 1_000)]
    [0.0, 0.0005, 0.001, 0.001]

    Args:
        learning_rate: The peak learning rate.
        warmup_steps: Updates until the peak; 0 starts there.

    Raises:
        ValueError: an argument is negative or not a number.
    """

    decay_name = "constant"

    def decay(self, step):
        """1 at every step."""
        return ops.ones_like(step)
