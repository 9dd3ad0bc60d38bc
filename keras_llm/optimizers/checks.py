"""Arguments of optimizers, checked before Keras takes them as they are."""

import numbers
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keras.optimizers.schedules import LearningRateSchedule

from keras_llm.arguments import check_number, check_positive_int


def check_keras_arguments(arguments: dict[str, Any]) -> None:
    """Raises `ValueError` for arguments of Keras's optimizers that are out of their range."""
    for name in ("clipnorm", "clipvalue", "global_clipnorm"):
        # A negative one would turn gradients round.
        if arguments.get(name) is not None:
            check_number(arguments[name], name, "(0, inf)")
    if (steps := arguments.get("gradient_accumulation_steps")) is not None:
        check_positive_int(steps, "gradient_accumulation_steps")


def checked_learning_rate(learning_rate: Any) -> float | LearningRateSchedule | Callable:
    """`learning_rate` in a form that Keras takes, or an error that says what to write."""
    if callable(learning_rate):
        return learning_rate
    if isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, numbers.Integral):
        return check_number(learning_rate, "learning_rate", "[0, inf)")
    raise TypeError(
        "learning_rate must be a float or a schedule, as in learning_rate=5e-5. "
        f"Received: learning_rate={learning_rate!r}"
    )


def patterns(exclude_from_weight_decay: str | Sequence[str]) -> tuple[str, ...]:
    """The regular expressions as a tuple, or an error that says what to write."""
    if isinstance(exclude_from_weight_decay, str) or not isinstance(
        exclude_from_weight_decay, Iterable
    ):
        exclude_from_weight_decay = (exclude_from_weight_decay,)
    for pattern in exclude_from_weight_decay:
        if not isinstance(pattern, str):
            raise TypeError(
                "exclude_from_weight_decay must be regular expressions for the variables' paths; "
                "for variables call optimizer.exclude_from_weight_decay(variables). "
                f"Received: {pattern!r}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                "exclude_from_weight_decay must be regular expressions. "
                f"Received: {pattern!r} ({error})"
            ) from error
    return tuple(exclude_from_weight_decay)
