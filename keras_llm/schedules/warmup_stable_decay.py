"""Warm-up, a plateau, then a decay."""

from typing import ClassVar

import keras
from keras import ops

from keras_llm.arguments import (
    check_non_negative_int,
    check_number,
    check_one_of,
    check_positive_int,
)
from keras_llm.schedules.warmup_cosine_decay import half_cosine
from keras_llm.schedules.warmup_schedule import WarmupSchedule

# The fraction of the peak, for the fraction of the decay that remains. The last is
# 1 - sqrt(progress), written so that no digits are lost to cancellation near the end.
DECAYS = {
    "cosine": half_cosine,
    "linear": lambda remaining: remaining,
    "1-sqrt": lambda remaining: remaining / (1 + ops.sqrt(1 - remaining)),
}


@keras.saving.register_keras_serializable(package="keras_llm")
class WarmupStableDecay(WarmupSchedule):
    """A linear warm-up, a plateau at the peak, and a decay to `min_ratio` of it.

        progress = (step - warmup_steps - stable_steps) / decay_steps, kept between 0 and 1
        lr(step) = learning_rate * (min_ratio + (1 - min_ratio) * f(progress))

    with f one of (1 + cos(pi * progress)) / 2, 1 - progress and 1 - sqrt(progress). The length of
    the plateau can be chosen during training: the decay starts when the model is wanted
    (Hu et al., "MiniCPM", 2024). Equals Hugging Face's `get_wsd_schedule`; as there, the warm-up
    starts from `min_ratio`.

    Example:
    >>> import keras_llm
    >>> schedule = keras_llm.schedules.WarmupStableDecay(
    ...     1e-3, warmup_steps=100, stable_steps=800, decay_steps=100)
    >>> [round(float(schedule(step)), 6) for step in (0, 50, 100, 900, 950, 1_000)]
    [0.0, 0.0005, 0.001, 0.001, 0.0005, 0.0]

    Args:
        learning_rate: The peak learning rate.
        warmup_steps: Updates until the peak; 0 starts there.
        stable_steps: Updates at the peak.
        decay_steps: Updates from the peak to `min_ratio` of it.
        decay_type: `"cosine"`, `"linear"` or `"1-sqrt"`.
        min_ratio: The fraction of the peak at the start of the warm-up and at the end.

    Raises:
        ValueError: an argument is out of range or not a number.
    """

    notes: ClassVar[dict[str, str]] = {
        **WarmupSchedule.notes,
        "stable_steps": "updates at the peak",
        "decay_steps": "updates from the peak to the end",
        "min_ratio": "fraction of the peak at the start and at the end",
    }

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int,
        stable_steps: int,
        decay_steps: int,
        decay_type: str = "cosine",
        min_ratio: float = 0.0,
    ):
        super().__init__(learning_rate, warmup_steps)
        self.stable_steps = check_non_negative_int(stable_steps, "stable_steps")
        self.decay_steps = check_positive_int(decay_steps, "decay_steps")
        self.decay_type = check_one_of(decay_type, "decay_type", DECAYS)
        self.min_ratio = check_number(min_ratio, "min_ratio", "[0, 1]")

    @property
    def total_steps(self):
        """The update at which the decay ends."""
        return self.warmup_steps + self.stable_steps + self.decay_steps

    def phases(self):
        """Warm-up, plateau and decay."""
        plateau_end = self.warmup_steps + self.stable_steps
        return [
            ("warm-up", self.warmup_steps),
            ("plateau", plateau_end),
            (f"{self.decay_type} decay", self.total_steps),
        ]

    def warmup(self, step):
        """From `min_ratio` to 1 at the warm-up's end."""
        return self.above_min_ratio(super().warmup(step))

    def decay(self, step):
        """1 on the plateau, then down to `min_ratio`."""
        remaining = self.total_steps - step
        # Clipped to [0, decay_steps] before the division: float32 holds whole numbers exactly.
        remaining = ops.relu(remaining) - ops.relu(remaining - self.decay_steps)
        return self.above_min_ratio(DECAYS[self.decay_type](remaining / self.decay_steps))

    def above_min_ratio(self, fraction):
        """Maps [0, 1] to [min_ratio, 1]."""
        return self.min_ratio + (1 - self.min_ratio) * fraction
