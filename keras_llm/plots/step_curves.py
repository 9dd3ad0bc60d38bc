"""The loss by step, and any number of the log points."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import ticker

from keras_llm.plots.drawing import COLOURS, add_legend, new_axes

AXES = {"step": "step", "tokens": "tokens", "seconds": "seconds of training"}


def step_curves(
    history, metric: str = "loss", by: str = "step", window: int | None = None, ax=None
):
    """A number of the log points over steps, tokens or time: as it is, and smoothed.

        smoothed_i = sum_j a^(i - j) * value_j / sum_j a^(i - j),    j <= i,   a = 1 - 1 / window

    an exponential moving average over about `window` points, without the bias of its beginning.
    Points of an evaluation (`val_`) are drawn as they are, where there are any.

    Args:
        history: What `fit` returned, or its `steps`, a list of dictionaries.
        metric: What to draw, such as `"loss"`, `"gradient_norm"`, `"learning_rate"`.
        by: `"step"`, `"tokens"` or `"seconds"`.
        window: Points of the average; by default a fiftieth of all, at least 2. With 1 there is
            none.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes, one line a curve.

    Raises:
        TypeError: `history` is neither.
        ValueError: there is no point with this number, or `by` is unknown.

    Example:
    >>> from keras_llm import plots
    >>> points = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0, "val_loss": 2.5}]
    >>> ax = plots.step_curves(points)
    >>> [line.get_label() for line in ax.lines]
    ['training', 'smoothed', 'validation']
    """
    points = getattr(history, "steps", history)
    if not isinstance(points, Sequence) or not all(isinstance(p, Mapping) for p in points):
        raise TypeError(
            "history must be what fit returned, or its steps, a list of dictionaries. "
            f"Received: a {type(history).__name__}"
        )
    if by not in AXES:
        raise ValueError(f"by must be one of {list(AXES)}. Received: by={by!r}")
    places, values = series(points, metric, by)
    if not len(values):
        names = sorted({name for point in points for name in point})
        raise ValueError(
            f"history must hold a log point with the metric. Received: metric={metric!r}, "
            f"points with {names}"
        )
    ax = new_axes(ax)
    window = max(2, len(values) // 50) if window is None else window
    raw = ax.plot(places, values, color=COLOURS[0], label="training")[0]
    if window > 1:
        raw.set(alpha=0.35, linewidth=1)
        averages = moving_average(values, window)
        ax.plot(places, averages, color=COLOURS[0], label="smoothed")
    places, values = series(points, f"val_{metric}", by)
    if len(values):
        look = {"color": COLOURS[1], "marker": "o" if len(values) <= 40 else "", "markersize": 4}
        ax.plot(places, values, label="validation", **look)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.set(xlabel=AXES[by], ylabel="loss, nats per token" if metric == "loss" else metric)
    add_legend(ax)
    return ax


def series(points, name: str, by: str):
    """Where the points with a number lie, and the number: two arrays.

    A point of an evaluation alone lies where the last point before it does.
    """
    places, values, last = [], [], 0.0
    for point in points:
        last = point.get(by, last)
        if np.isfinite(point.get(name, np.nan)):
            places.append(last)
            values.append(point[name])
    return np.array(places), np.array(values)


def moving_average(values, window: int):
    """The exponential moving average over about `window` values, unbiased from the first on.

    >>> moving_average(np.array([3.0, 3.0, 0.0]), 2).round(3).tolist()
    [3.0, 3.0, 1.286]
    """
    decay, total, weight, averages = 1.0 - 1.0 / window, 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        averages.append(total / weight)
    return np.array(averages)
