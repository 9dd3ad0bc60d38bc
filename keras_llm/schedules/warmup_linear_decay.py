"""Warm-up, then a straight line down to 0."""

from typing import ClassVar

import keras
from keras import ops

from keras_llm.schedules.warmup_schedule import WarmupSchedule, total_after_warmup


@keras.saving.register_keras_serializable(package="keras_llm")
class WarmupLinearDecay(WarmupSchedule):
    """A linear warm-up, then a straight line that reaches 0 at `total_steps`, and stays there.

        lr(step) = learning_rate * (total_steps - step) / (total_steps - warmup_steps)

    The schedule of BERT's fine-tuning. Equals Hugging Face's `get_linear_schedule_with_warmup`.

    Example:
    >>> import keras_llm
    >>> schedule = keras_llm.schedules.WarmupLinearDecay(1e-3, warmup_steps=100, total_steps=1_100)
    >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 600, 1_100)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0]

    Args:
        learning_rate: The peak learning rate.
        warmup_steps: Updates until the peak; 0 starts there.
        total_steps: Updates until 0, the warm-up's included.

    Raises:
        ValueError: an argument is negative or not a number, or the warm-up is longer than the
            whole.
    """

    decay_name = "linear decay"
    notes: ClassVar[dict[str, str]] = {**WarmupSchedule.notes, "total_steps": "updates until 0"}

    def __init__(self, learning_rate: float, warmup_steps: int, total_steps: int):
        super().__init__(learning_rate, warmup_steps)
        self.total_steps = total_after_warmup(total_steps, self.warmup_steps)

    def decay(self, step):
        """From 1 at the warm-up's end to 0 at `total_steps`."""
        return ops.relu(self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
