"""Warm-up, then half a cosine wave."""

import math
from typing import ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_number
from keras_llm.schedules.warmup_schedule import WarmupSchedule, total_after_warmup


@keras.saving.register_keras_serializable(package="keras_llm")
class WarmupCosineDecay(WarmupSchedule):
    """A linear warm-up, then half a cosine wave down to `min_ratio` of the peak at `total_steps`,
    where it stays.

        progress = (step - warmup_steps) / (total_steps - warmup_steps), at most 1
        lr(step) = learning_rate * (min_ratio + (1 - min_ratio) * (1 + cos(pi * progress)) / 2)

    The usual choice for pretraining (Loshchilov and Hutter, "SGDR", 2017). Equals Hugging Face's
    `get_cosine_schedule_with_warmup`, and with `min_ratio` its
    `get_cosine_with_min_lr_schedule_with_warmup(min_lr_rate=...)`, up to `total_steps`. After
    that, theirs rises again, along the next half of the wave; this one stays at `min_ratio`.

    Example:
    >>> import keras_llm
    >>> schedule = keras_llm.schedules.WarmupCosineDecay(1e-3, warmup_steps=100, total_steps=1_100)
    >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 600, 1_100, 2_000)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0, 0.0]

    Args:
        learning_rate: The peak learning rate.
        warmup_steps: Updates until the peak; 0 starts there.
        total_steps: Updates until the end of the decay, the warm-up's included.
        min_ratio: The fraction of the peak at the end.

    Raises:
        ValueError: an argument is out of range or not a number, or the warm-up is longer than the
            whole.
    """

    decay_name = "cosine decay"
    notes: ClassVar[dict[str, str]] = {
        **WarmupSchedule.notes,
        "total_steps": "updates until the end of the decay",
        "min_ratio": "fraction of peak at the end",
    }

    def __init__(
        self, learning_rate: float, warmup_steps: int, total_steps: int, min_ratio: float = 0.0
    ):
        super().__init__(learning_rate, warmup_steps)
        self.total_steps = total_after_warmup(total_steps, self.warmup_steps)
        self.min_ratio = check_number(min_ratio, "min_ratio", "[0, 1]")

    def decay(self, step):
        """From 1 at the warm-up's end to `min_ratio` at `total_steps` and after."""
        remaining = ops.relu(self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return self.min_ratio + (1 - self.min_ratio) * half_cosine(remaining)


def half_cosine(remaining):
    """(1 + cos(pi * (1 - remaining))) / 2, for the fraction of the decay that remains."""
    # By the half-angle formula: near the end, 1 + cos loses its digits to cancellation in float32.
    return ops.square(ops.sin(remaining * (math.pi / 2)))
