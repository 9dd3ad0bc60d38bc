"""What every schedule of this library shares: the warm-up."""

import inspect
from abc import abstractmethod
from typing import ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_non_negative_int, check_number, check_positive_int
from keras_llm.names_elsewhere import NamesElsewhere
from keras_llm.usual_range import BERT, GPT_3, Source, UsualRange

LLAMA = Source("LLaMA 2023", "https://arxiv.org/abs/2302.13971")


class WarmupSchedule(NamesElsewhere, keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to its peak in a straight line, then follows `decay`.

        lr(step) = learning_rate * step / warmup_steps    for step < warmup_steps
                   learning_rate * decay(step)            from there on

    `step` counts updates from 0, so with a warm-up the first update has a learning rate of 0, as
    in Hugging Face's schedules and PyTorch's `LambdaLR`. The result is a float32 scalar tensor,
    a pure function of `step`: nothing is kept from one call to the next.

    Subclasses write `decay`, with Python operators and `ops.relu` rather than `ops.minimum` or
    `ops.cond`: on a GPU those would copy a constant to the device, or read the step back from it,
    and wait for that in every update. For `explain` and plots they may also write `decay_name`,
    `notes` and, where the decay has an end, `total_steps`. Arguments of their own that they keep by
    their names are saved.

    Args:
        learning_rate: The peak learning rate.
        warmup_steps: Updates until the peak; 0 starts there.

    Attributes:
        total_steps: The update from which on the learning rate no longer changes, the warm-up
            included; None for a schedule without an end.
        decay_name: A few words for what follows the warm-up.
        notes: By the name of an argument, a few words for what it means.
        usual_ranges: By the name of an argument, its usual values.
    """

    total_steps: int | None = None
    decay_name: ClassVar[str] = "decay"
    notes: ClassVar[dict[str, str]] = {"warmup_steps": "updates until the peak"}
    write_instead: ClassVar[dict[str, str]] = {
        "lr": "learning_rate=...",
        "initial_learning_rate": "learning_rate=..., the peak",
        "warmup_target": "learning_rate=..., the peak",
        "optimizer": "nothing: the schedule is the optimizer's learning_rate",
        "num_warmup_steps": "warmup_steps=...",
        "warmup_ratio": "warmup_steps=..., a number of updates",
        "num_training_steps": "total_steps=..., warm-up included",
        "decay_steps": "total_steps=..., warm-up included",
    }

    @property
    def usual_ranges(self) -> dict[str, UsualRange]:
        """The usual end value, and where there is an end, the usual warm-up."""
        ended = UsualRange(0.0, 0.1, (BERT, LLAMA), above="the last updates are still large")
        if not self.total_steps:
            return {"min_ratio": ended}
        return {"min_ratio": ended, "warmup_steps": usual_warmup(self.total_steps)}

    def __init__(self, learning_rate: float, warmup_steps: int):
        self.learning_rate = check_number(learning_rate, "learning_rate", "[0, inf)")
        self.warmup_steps = check_non_negative_int(warmup_steps, "warmup_steps")

    def warmup(self, step):
        """The fraction of the peak at `step`, before `warmup_steps`."""
        return step / max(1, self.warmup_steps)

    @abstractmethod
    def decay(self, step):
        """The fraction of the peak at `step`, from `warmup_steps` on."""

    def __call__(self, step):
        """The learning rate of update `step`: a number, array, tensor or variable."""
        # float32 counts whole updates up to 2**24, some 16 million.
        step = ops.cast(step, "float32")
        fraction = ops.where(step < self.warmup_steps, self.warmup(step), self.decay(step))
        return self.learning_rate * fraction

    def phases(self) -> list[tuple[str, int | None]]:
        """The name of each phase and the update at which it ends, None for a phase without an end.

        Example:

        >>> import keras_llm
        >>> keras_llm.schedules.WarmupLinearDecay(1e-3, warmup_steps=10, total_steps=90).phases()
        [('warm-up', 10), ('linear decay', 90)]
        """
        return [("warm-up", self.warmup_steps), (self.decay_name, self.total_steps)]

    def shown_steps(self) -> int:
        """How many updates a picture should show: all, or where there is no end, enough of them."""
        return self.total_steps or 4 * (self.warmup_steps or 10_000)

    def get_config(self):
        """The constructor's arguments, as far as the schedule keeps them by their names."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


def total_after_warmup(total_steps, warmup_steps: int) -> int:
    """`total_steps` as an int that leaves room for the warm-up, or an error."""
    total_steps = check_positive_int(total_steps, "total_steps")
    if warmup_steps > total_steps:
        raise ValueError(
            "warmup_steps must not exceed total_steps. "
            f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    return total_steps


def usual_warmup(total_steps: int) -> UsualRange:
    """The usual warm-up for so many updates in all.

    From a thousandth (GPT-3: 375M of 300B tokens) to a tenth (BERT's fine-tuning).

    >>> str(usual_warmup(20_000))
    '20 – 2,000'
    """
    return UsualRange(
        max(1, round(0.001 * total_steps)),
        round(0.1 * total_steps),
        (GPT_3, BERT),
        below="Adam's first updates rest on few gradients and are large: start lower",
        above="much of the training is spent below the peak",
    )
