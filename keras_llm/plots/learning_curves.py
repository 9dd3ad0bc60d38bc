"""The loss by epoch, and any metric."""

from collections.abc import Mapping

import keras
import numpy as np
from matplotlib import ticker

from keras_llm.plots.drawing import COLOURS, add_legend, new_axes


def learning_curves(history, metric: str = "loss", perplexity: str = "perplexity", ax=None):
    """Training and validation by epoch: the loss, with perplexity on a second scale.

        perplexity = exp(nll per token)

    so the scale on the right reads the same lines. Where the loss is not the plain nll (smoothed,
    focal, with a penalty), dotted lines show the nll, which is what the scale on the right reads.
    It is drawn where the history has the perplexity.

    A metric may be of validation alone, such as one that a callback puts into the logs.

    The training loss of an epoch is a mean over its steps, from worse weights to better ones; the
    validation loss is that of its last weights. Early on, validation is often the lower of the two.
    A list that is shorter than the others was measured in every k-th epoch (`validation_freq=k`).

    Args:
        history: What `fit` returned, or a dictionary of lists such as its `history`.
        metric: What to draw: `"loss"`, or the name of a metric.
        perplexity: The name that `metrics.Perplexity` has in the history.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes, one line a curve.

    Raises:
        TypeError: `history` is neither.
        ValueError: the history is empty, has no such metric, or a list of a length that no
            `validation_freq=k` explains.

    Example:
    >>> from keras_llm import plots
    >>> ax = plots.learning_curves({"loss": [3.0, 2.0], "val_loss": [2.5, 2.2]})
    >>> [line.get_label() for line in ax.lines]
    ['training', 'validation']
    """
    epochs, curves = read(history)
    if not any(len(curves.get(prefix + metric, ())) for prefix in ("", "val_")):
        raise ValueError(
            "history must hold at least one epoch of the metric. "
            f"Received: metric={metric!r}, a history of {sorted(curves)}"
        )
    ax = new_axes(ax)
    for prefix, label, colour in (("", "training", COLOURS[0]), ("val_", "validation", COLOURS[1])):
        if prefix + metric not in curves:
            continue
        values = curves[prefix + metric]
        # A single epoch is a point, which a line would not show.
        look = {"color": colour, "marker": "o" if len(values) <= 40 else "", "markersize": 4}
        ax.plot(*finite(epochs, values), label=label, **look)
        nll = np.log(curves.get(prefix + perplexity, np.array([])))
        # The loss may be the nll, as far as is known, but for rounding.
        is_nll = len(nll) != len(values) or np.allclose(nll, values, 1e-3, 1e-4, equal_nan=True)
        if metric == "loss" and not is_nll:
            look |= {"linestyle": ":", "marker": "o" if len(values) == 1 else ""}
            ax.plot(*finite(epochs, nll), label=f"{label} nll", **look)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="epoch", ylabel="loss, nats per token" if metric == "loss" else metric)
    if len(ax.lines) > 1:
        add_legend(ax)
    if metric == "loss" and perplexity in curves:
        # A scale whose numbers are the exponentials of those on the left.
        right = ax.secondary_yaxis("right", functions=(np.exp, log))
        right.set_ylabel("perplexity")
        right.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.4g}"))
        right.spines["right"].set_visible(False)
    return ax


def read(history):
    """The numbers of the epochs, from 1, and the curves as arrays by name."""
    numbers = None
    if isinstance(history, keras.callbacks.History):
        numbers, history = history.epoch, history.history
    if not isinstance(history, Mapping):
        raise TypeError(
            "history must be what fit returned, or a dictionary of lists. "
            f"Received: a {type(history).__name__}"
        )
    curves = {name: np.asarray(values, float) for name, values in history.items()}
    longest = max((len(values) for values in curves.values()), default=0)
    if numbers is None or len(numbers) != longest:
        numbers = range(longest)
    return np.array(numbers) + 1, curves


def finite(epochs, values):
    """The values that can be drawn, and their epochs: every k-th with `validation_freq=k`."""
    every = (epochs[epochs % k == 0] for k in range(1, epochs[-1] + 1))
    measured = next((some for some in every if len(some) == len(values)), None)
    if measured is None:
        raise ValueError(
            "history must hold a value for every epoch, or for every k-th. "
            f"Received: {len(values)} values for {len(epochs)} epochs"
        )
    drawn = np.isfinite(values)
    return measured[drawn], values[drawn]


def log(perplexity):
    """The logarithm, which Matplotlib also tries on 0 while it looks for the scale's limits."""
    return np.log(np.maximum(perplexity, np.finfo(float).tiny))
