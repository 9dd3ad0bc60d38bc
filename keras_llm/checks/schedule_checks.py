"""Mistakes that a learning rate schedule and the length of a `fit` show together."""

import math

from keras.optimizers.schedules import CosineDecay, PolynomialDecay

from keras_llm.backend.keras_private import inner_optimizer, learning_rate_schedule
from keras_llm.checks.compile_checks import peak_learning_rate
from keras_llm.checks.sanity_warning import guided
from keras_llm.schedules.warmup_schedule import WarmupSchedule

GUIDE = "4_adamw_and_adafactor"


def schedule_message(model, batches: int | None, to_come: int | None) -> str | None:
    """A learning rate that is 0 already, or will be before the last update.

    Args:
        model: The model.
        batches: Those of an epoch; None where they are not known.
        to_come: Those that `fit` will train on; None where they are not known.
    """
    optimizer = inner_optimizer(model.optimizer)
    schedule = learning_rate_schedule(optimizer)
    if schedule is None:
        return None
    done = int(optimizer.iterations)
    if done and optimizer.learning_rate == 0:
        return guided(
            f"The learning rate is 0 after {done:,} updates: the schedule has ended, and further "
            "updates change nothing. To train on, compile again with a new schedule.",
            GUIDE,
        )
    to_come = updates(model.step, optimizer, batches, to_come)
    end = update_of_zero(schedule)
    if to_come is None or end is None or done + to_come <= end or not peak_learning_rate(optimizer):
        return None
    excess = done + to_come - end
    config = schedule.get_config()
    name = next((name for name in ("total_steps", "decay_steps") if name in config), None)
    longer = f"Write {name}={math.ceil(config[name] + excess)} in" if name else "Lengthen"
    return guided(
        f"The schedule ends after {end:,} updates, but this fit ends with update "
        f"{done + to_come:,}: updates after {end:,} have a learning rate of 0 and change nothing. "
        f"{longer} the schedule, or train for fewer steps.",
        GUIDE,
    )


def updates(step, optimizer, batches: int | None, to_come: int | None) -> int | None:
    """The number of updates in these batches; None where it is not known."""
    if to_come is None:
        return None
    if step is not None:
        # An epoch's last window may be short.
        epochs, rest = divmod(to_come, batches or to_come)
        window = step.accumulation
        return epochs * math.ceil((batches or to_come) / window) + math.ceil(rest / window)
    # With accumulation, schedules of Keras's optimizers count batches, and ours count updates.
    return None if optimizer.gradient_accumulation_steps else to_come


def update_of_zero(schedule) -> int | None:
    """The update from which on the learning rate is 0; None where it stays above 0, or the end is
    not known."""
    if isinstance(schedule, WarmupSchedule):
        end = schedule.total_steps
    elif isinstance(schedule, CosineDecay):
        end = schedule.decay_steps
        end += 0 if schedule.warmup_target is None else schedule.warmup_steps
    elif isinstance(schedule, PolynomialDecay) and not schedule.cycle:
        end = schedule.decay_steps
    else:
        return None
    return None if end is None or schedule(end) != 0 else math.ceil(end)
