"""What every schedule of this library shares: the warm-up."""

import math
import numbers
from abc import abstractmethod
from typing import ClassVar

import keras
from keras import ops

from keras_llm.names_elsewhere import NamesElsewhere


class WarmupSchedule(NamesElsewhere, keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to its peak in a straight line, then follows `decay`.

        lr(step) = learning_rate * step / warmup_steps    for step < warmup_steps
                   learning_rate * decay(step)            from there on

    `step` counts updates from 0, so with a warm-up the first update has a learning rate of 0, as
    in Hugging Face's schedules and PyTorch's `LambdaLR`. The result is a float32 scalar tensor,
    a pure function of `step`: nothing is kept from one call to the next.

    Subclasses write `decay`, with Python operators and `ops.relu` rather than `ops.minimum` or
    `ops.cond`: on a GPU those would copy a constant to the device, or read the step back from it,
    and wait for that in every update.

    Args:
        learning_rate: The peak learning rate.
        warmup_steps: Updates until the peak; 0 starts there.
    """

    write_instead: ClassVar[dict[str, str]] = {
        "lr": "learning_rate=...",
        "initial_learning_rate": "learning_rate=..., the peak",
        "warmup_target": "learning_rate=..., the peak",
        "optimizer": "nothing: the schedule is the optimizer's learning_rate",
        "num_warmup_steps": "warmup_steps=...",
        "num_training_steps": "total_steps=..., warm-up included",
        "decay_steps": "total_steps=..., warm-up included",
    }

    def __init__(self, learning_rate: float, warmup_steps: int):
        real = isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool)
        if not real or not 0 <= learning_rate < math.inf:
            raise ValueError(
                "learning_rate must be a number of at least 0, the schedule's peak. "
                f"Received: learning_rate={learning_rate!r}"
            )
        self.learning_rate = float(learning_rate)
        self.warmup_steps = whole_number("warmup_steps", warmup_steps)

    def rise(self, step):
        """The part of the peak that is reached at `step`, before `warmup_steps`."""
        return step / max(1, self.warmup_steps)

    @abstractmethod
    def decay(self, step):
        """The part of the peak that is left at `step`, from `warmup_steps` on."""

    def __call__(self, step):
        """The learning rate of update `step`: a number, array, tensor or variable."""
        # float32 counts whole updates up to 2**24, some 16 million.
        step = ops.cast(step, "float32")
        part = ops.where(step < self.warmup_steps, self.rise(step), self.decay(step))
        return self.learning_rate * part

    def get_config(self):
        """The constructor's arguments."""
        return {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps}


def whole_number(name: str, value, at_least: int = 0) -> int:
    """`value` as an int, or an error that names the argument."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < at_least:
        raise ValueError(
            f"{name} must be a whole number of updates, at least {at_least}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def ratio(name: str, value) -> float:
    """`value` as a float between 0 and 1, or an error that names the argument."""
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(
            f"{name} must be a part of the peak, between 0 and 1. Received: {name}={value!r}"
        )
    return float(value)


def total_after_warmup(total_steps, warmup_steps: int) -> int:
    """`total_steps` as an int that leaves room for the warm-up, or an error."""
    total_steps = whole_number("total_steps", total_steps, at_least=1)
    if warmup_steps > total_steps:
        raise ValueError(
            "warmup_steps must not exceed total_steps. "
            f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    return total_steps
