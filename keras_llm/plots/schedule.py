"""How the learning rate rises and falls."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_llm.backend.host import to_float
from keras_llm.backend.keras_private import inner_optimizer, learning_rate_schedule
from keras_llm.explanation.schedule_facts import phases_of
from keras_llm.plots.drawing import add_legend, line_style, new_axes
from keras_llm.schedules import WarmupConstant

POINTS = 500


def schedule(schedule, steps: int | None = None, ax=None):
    """The learning rate by update, of one schedule or of several.

    An optimizer that has begun shows where it is: a dot at its next update.

    Args:
        schedule: A schedule, or an optimizer with one; for a comparison a list of these, or a
            dictionary with the names to call them by.
        steps: The last update; None for the end of the longest schedule that ends.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes, one line a schedule.

    Raises:
        TypeError: something is neither a schedule nor an optimizer.
        ValueError: `steps` is not positive, or there is nothing to draw.

    Example:
    >>> from keras_llm import plots, schedules
    >>> ax = plots.schedule(schedules.WarmupLinearDecay(1e-3, warmup_steps=10, total_steps=100))
    >>> x, y = ax.lines[0].get_data()
    >>> float(x[-1]), float(y[10])
    (100.0, 0.001...)
    """
    named = by_name(schedule)
    curves = {name: as_schedule(each) for name, each in named.items()}
    begun = {name: int(getattr(each, "iterations", 0)) for name, each in named.items()}
    if steps is None:
        # A schedule without an end is drawn as far as the others.
        known = [phases_of(curve) for curve in curves.values()]
        known = [each for each in known if each.total_steps] or known
        steps = max([each.shown_steps for each in known] + [*begun.values()], default=0)
    if not curves or steps < 1:
        raise ValueError(
            "schedule and steps must be at least one schedule and one update. "
            f"Received: {len(curves)} schedules, steps={steps}"
        )
    ax = new_axes(ax)
    updates = np.linspace(0, steps, POINTS + 1).round()
    for index, (name, curve) in enumerate(curves.items()):
        # Its corners too, which lie between the points of a long schedule.
        corners = [n for n in phases_of(curve).corners if n <= steps]
        own = np.unique([*updates, *corners])
        ax.plot(own, [rate(curve, n) for n in own], label=name, **line_style(index))
        if 0 < begun[name] <= steps:
            now = rate(curve, begun[name])
            ax.plot(begun[name], now, "o", color=line_style(index)["color"])
    ax.set(xlabel="update", ylabel="learning rate")
    ax.ticklabel_format(axis="y", scilimits=(-2, 2), useMathText=True)
    ax.set_ylim(bottom=0)
    if len(curves) > 1:
        add_legend(ax)
    else:
        ax.set_title(name)
    return ax


def rate(schedule, update) -> float:
    """The learning rate of an update."""
    return to_float(schedule(ops.cast(update, "float32")))


def by_name(schedules) -> dict:
    """Schedules and optimizers by their names; several of one class are numbered."""
    if isinstance(schedules, Mapping):
        return dict(schedules)
    if not isinstance(schedules, list | tuple):
        schedules = [schedules]
    names = [type(each).__name__ for each in schedules]
    return {
        f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name: schedules[i]
        for i, name in enumerate(names)
    }


def as_schedule(thing):
    """The schedule of an optimizer; of a fixed learning rate, the one that never changes."""
    schedule = thing
    if isinstance(thing, keras.optimizers.Optimizer):
        optimizer = inner_optimizer(thing)
        schedule = learning_rate_schedule(optimizer)
        if schedule is None:
            return WarmupConstant(float(optimizer.learning_rate), warmup_steps=0)
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        raise TypeError(
            "schedule must be a schedule or an optimizer, or several in a list or a dictionary. "
            f"Received: {thing!r} of type {type(thing).__name__}"
        )
    return schedule
