"""The phases of a schedule: from its own methods, or from the arguments of one of Keras's."""

from typing import NamedTuple

from keras_llm.schedules.warmup_schedule import usual_warmup
from keras_llm.usual_range import UsualRange


class Phases(NamedTuple):
    """Where a schedule changes, and what is known of its arguments.

    Attributes:
        corners: The updates at which one phase ends and the next one begins.
        total_steps: The update at which the last phase ends; None for a schedule without an end.
        shown_steps: How many updates a picture should show.
        arguments: The constructor's arguments; empty where the class does not tell.
        notes: What they mean.
        usual_ranges: Their usual values.
    """

    corners: list[int]
    total_steps: int | None
    shown_steps: int
    arguments: dict
    notes: dict[str, str]
    usual_ranges: dict[str, UsualRange]


def phases_of(schedule) -> Phases:
    """The phases of a schedule.

    >>> import keras_llm
    >>> phases_of(keras_llm.schedules.WarmupLinearDecay(1e-3, 10, 100)).corners
    [10, 100]
    """
    try:
        arguments = schedule.get_config()
    except NotImplementedError:
        arguments = {}
    warmup, decay = (arguments.get(name) or 0 for name in ("warmup_steps", "decay_steps"))
    total = getattr(schedule, "total_steps", warmup + decay if decay else None)
    boundaries = list(arguments.get("boundaries", ()))
    corners = [warmup, *boundaries, *([total] if total else [])]
    if hasattr(schedule, "phases"):
        corners = [end for _, end in schedule.phases() if end is not None]
    shown = total or (5 * max(boundaries) // 4 if boundaries else None)
    shown = shown or 4 * (arguments.get("first_decay_steps") or warmup or 10_000)
    if hasattr(schedule, "shown_steps"):
        shown = schedule.shown_steps()
    notes = {"warmup_steps": "updates until the peak", "decay_steps": "updates of the decay"}
    ranges = {"warmup_steps": usual_warmup(total)} if total and "warmup_steps" in arguments else {}
    return Phases(
        corners,
        total,
        shown,
        arguments,
        getattr(schedule, "notes", notes),
        getattr(schedule, "usual_ranges", ranges),
    )
