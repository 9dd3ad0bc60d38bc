"""An optimizer's `learning_rate=...`: how it goes over the updates, and where it is today."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import learning_rate_schedule
from keras_llm.optimizers.adafactor import RelativeStep
from keras_llm.teaching import typical
from keras_llm.teaching.compiled import Compiled
from keras_llm.teaching.facts import Curve, Fact, Section, setting, shown

# A schedule is asked for so many of its updates.
POINTS = 97
# Arguments that count updates.
LENGTHS = ("warmup_steps", "stable_steps", "decay_steps")
# The last update before Adafactor's own learning rate falls: 1 / sqrt(t) = 1e-2.
ADAFACTOR_TURN = 9_999
NOTES = {
    "warmup_steps": "on the way up",
    "stable_steps": "updates at the peak",
    "decay_steps": "updates on the way down",
    "total_steps": "updates in all",
    "min_ratio": "of the peak is left",
}


def schedule_section(compiled: Compiled) -> Section | None:
    """The learning rate; None where there is no optimizer, or each part has its own."""
    optimizer = compiled.optimizer
    try:
        today = float(ops.convert_to_numpy(optimizer.learning_rate))
    except (AttributeError, ValueError, NotImplementedError):
        return None
    step = int(optimizer.iterations)
    schedule = learning_rate_schedule(optimizer)
    usual = typical.learning_rate_of(optimizer, compiled.parameters)
    if schedule is None:
        return Section("Learning rate", "no schedule", constant(optimizer, today, step, usual))
    curve = curve_of(schedule, step, today)
    peak = max(curve.values)
    relative = getattr(optimizer, "relative_step", False) and hasattr(optimizer, "scale_parameter")
    facts = [
        Fact("today", today, note=f"at update {step:,}"),
        setting("peak", peak, "size of a step", None if relative else usual),
        *schedule_settings(schedule, step),
    ]
    return Section("Learning rate", type(schedule).__name__, tuple(facts), curve)


def constant(optimizer, today, step, usual) -> tuple[Fact, ...]:
    """A learning rate that is a number, or what a function returns."""
    fact = setting("today", today, f"after {step:,} updates", usual)
    return fact, Fact("warm-up", 0, "none", "the first updates are as large as all others")


def curve_of(schedule, step: int, today: float) -> Curve:
    """A schedule from its first update to its end, or as far as training has gone."""
    end = max(horizon(schedule), step)
    steps = np.linspace(0, end, POINTS).round().astype(int)
    knots = [step, *(n for n in knots_of(schedule) if n <= end)]
    steps = sorted({*steps.tolist(), *knots})
    return Curve(tuple(steps), tuple(values_of(schedule, steps)), step, today)


def values_of(schedule, steps: list[int]) -> list[float]:
    """The learning rates of some updates."""
    if keras.backend.backend() != "jax":
        return [float(ops.convert_to_numpy(schedule(n))) for n in steps]
    # One by one, JAX would compile each branch of a schedule anew for each of them.
    steps = ops.convert_to_tensor(steps, "int32")
    values = ops.vectorized_map(lambda n: ops.convert_to_tensor(schedule(n), "float32"), steps)
    return ops.convert_to_numpy(values).tolist()


def knots_of(schedule) -> list[int]:
    """Updates at which one part of a schedule ends and another begins."""
    if isinstance(schedule, RelativeStep):
        return [ADAFACTOR_TURN]
    config = arguments(schedule)
    warmup, stable, decay = (config.get(name) or 0 for name in LENGTHS)
    return [warmup, warmup + stable, warmup + stable + decay]


def horizon(schedule) -> int:
    """The update at which a schedule ends; for one without an end, where its shape is seen."""
    config = arguments(schedule)
    if "total_steps" in config:
        return config["total_steps"]
    if "boundaries" in config:
        return int(1.25 * max(config["boundaries"]))
    if config.get("decay_steps"):
        return knots_of(schedule)[-1]
    names = ("timescale", "warmup_steps", "first_decay_steps")
    return 4 * next((config[name] for name in names if config.get(name)), ADAFACTOR_TURN + 1)


def schedule_settings(schedule, step: int) -> list[Fact]:
    """The schedule's arguments, with what is unusual about them."""
    config = arguments(schedule)
    facts = []
    for name, value in config.items():
        if name in ("name", "learning_rate", "warmup_init") or value is None:
            continue
        if not isinstance(value, int | float | str | bool):
            value = str(value)
        note, flag = NOTES.get(name, ""), ""
        if name == "total_steps" and step > value:
            flag = f"training has gone on for {step:,} updates, beyond the schedule's end"
        if name == "min_ratio":
            facts.append(setting(name, value, note, typical.MIN_RATIO))
        elif name == "warmup_steps" and has_an_end(config):
            facts.append(warmup(value, horizon(schedule), note))
        else:
            facts.append(Fact(name, value, note=note, flag=flag))
    return facts


def has_an_end(config) -> bool:
    """Whether a schedule says when it is over."""
    return bool(config.get("total_steps") or config.get("decay_steps"))


def warmup(steps: int, total: int, note: str) -> Fact:
    """A warm-up beside what is usual for so many updates."""
    usual = typical.WARMUP_SHARE
    low, high = max(1, round(usual.low * total)), round(usual.high * total)
    usual = dataclasses.replace(usual, low=low, high=high)
    note = f"{note}: {shown(round(100 * steps / total, 2))} %"
    return setting("warmup_steps", steps, note, usual)


def arguments(schedule) -> dict:
    """A schedule's arguments; none where its class does not tell."""
    try:
        return schedule.get_config()
    except NotImplementedError:
        return {}
