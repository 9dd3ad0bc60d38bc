"""An optimizer's `learning_rate=...`: its values over the updates, and the value now."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_llm.backend.host import to_float
from keras_llm.backend.keras_private import learning_rate_schedule
from keras_llm.explanation.compiled_model import CompiledModel
from keras_llm.explanation.facts import Curve, Fact, Section, setting
from keras_llm.optimizers.usual_learning_rate import usual_learning_rate
from keras_llm.schedules.warmup_schedule import usual_warmup
from keras_llm.usual_range import UsualRange
from keras_llm.value_text import value_text

# How many updates of a schedule are computed for its curve.
POINTS = 97
# Told otherwise, or of no interest.
TOLD = ("name", "learning_rate", "warmup_init")


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


def schedule_section(compiled: CompiledModel) -> Section | None:
    """The learning rate; None where there is no optimizer, or each part has its own."""
    optimizer = compiled.optimizer
    try:
        now = to_float(optimizer.learning_rate)
    except (AttributeError, ValueError, NotImplementedError):
        return None
    step = int(optimizer.iterations)
    schedule = learning_rate_schedule(optimizer)
    usual = usual_learning_rate(optimizer, compiled.parameters)
    if schedule is None:
        facts = (
            setting("today", now, f"after {step:,} updates", usual),
            Fact("warm-up", 0, "none", "the first updates are as large as all others"),
        )
        return Section("Learning rate", "no schedule", facts)
    phases = phases_of(schedule)
    curve = curve_of(schedule, phases, step, now)
    facts = [
        Fact("today", now, note=f"at update {step:,}"),
        setting("peak", max(curve.values), "size of a step", usual),
        *schedule_settings(phases, step),
    ]
    return Section("Learning rate", type(schedule).__name__, tuple(facts), curve)


def curve_of(schedule, phases: Phases, step: int, now: float) -> Curve:
    """A schedule from its first update to its end, or as far as training has gone."""
    end = max(phases.shown_steps, step)
    steps = np.linspace(0, end, POINTS).round().astype(int)
    corners = [step, *(n for n in phases.corners if n <= end)]
    steps = sorted({*steps.tolist(), *corners})
    return Curve(steps, values_of(schedule, steps), step, now)


def values_of(schedule, steps: list[int]) -> list[float]:
    """The learning rates of some updates."""
    if keras.backend.backend() != "jax":
        return [to_float(schedule(n)) for n in steps]
    # One by one, JAX would compile each branch of a schedule anew for each of them.
    steps = ops.convert_to_tensor(steps, "int32")
    values = ops.vectorized_map(lambda n: ops.convert_to_tensor(schedule(n), "float32"), steps)
    return ops.convert_to_numpy(values).tolist()


def schedule_settings(phases: Phases, step: int) -> list[Fact]:
    """The schedule's arguments, with what is unusual about them."""
    facts = []
    for name, value in phases.arguments.items():
        if name in TOLD or value is None:
            continue
        if not isinstance(value, int | float | str | bool):
            value = str(value)
        note = phases.notes.get(name, "")
        if name == "warmup_steps" and phases.total_steps:
            note += f": {value_text(round(100 * value / phases.total_steps, 2))} %"
        fact = setting(name, value, note, phases.usual_ranges.get(name))
        facts.append(fact)
    if phases.total_steps and step > phases.total_steps:
        flag = f"training has gone on for {step:,} updates, beyond the schedule's end"
        facts.append(Fact("end", phases.total_steps, note="update of the last change", flag=flag))
    return facts
