"""Warm-up, a plateau, then a decay."""

import keras
from keras import ops

from keras_llm.schedules.warmup_cosine_decay import half_cosine
from keras_llm.schedules.warmup_schedule import WarmupSchedule, ratio, whole_number

# What is left of the peak, by the part of the decay that remains. The last is 1 - sqrt(progress),
# written so that nothing cancels near the end.
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

    with f one of (1 + cos(pi * progress)) / 2, 1 - progress and 1 - sqrt(progress). The plateau
    may be prolonged at will, and the decay added when the model is wanted (Hu et al., "MiniCPM",
    2024). Equals Hugging Face's `get_wsd_schedule`; as there, the warm-up starts from `min_ratio`.

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
        min_ratio: The part of the peak that the warm-up starts from and that is left at the end.

    Raises:
        ValueError: an argument is out of range or not a number.
    """

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
        if decay_type not in DECAYS:
            raise ValueError(
                f"decay_type must be one of {sorted(DECAYS)}. Received: decay_type={decay_type!r}"
            )
        self.stable_steps = whole_number("stable_steps", stable_steps)
        self.decay_steps = whole_number("decay_steps", decay_steps, at_least=1)
        self.decay_type = decay_type
        self.min_ratio = ratio("min_ratio", min_ratio)

    def rise(self, step):
        """From `min_ratio` to 1 at the warm-up's end."""
        return self.above_min_ratio(super().rise(step))

    def decay(self, step):
        """1 on the plateau, then down to `min_ratio`."""
        remaining = self.warmup_steps + self.stable_steps + self.decay_steps - step
        # Kept between 0 and decay_steps, by whole numbers, which float32 holds exactly.
        remaining = ops.relu(remaining) - ops.relu(remaining - self.decay_steps)
        return self.above_min_ratio(DECAYS[self.decay_type](remaining / self.decay_steps))

    def above_min_ratio(self, part):
        """0 to 1 stretched over `min_ratio` to 1."""
        return self.min_ratio + (1 - self.min_ratio) * part

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "stable_steps": self.stable_steps,
            "decay_steps": self.decay_steps,
            "decay_type": self.decay_type,
            "min_ratio": self.min_ratio,
        }
