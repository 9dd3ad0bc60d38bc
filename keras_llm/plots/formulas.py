"""Small pictures of formulas: focal loss, label smoothing, and the memory of the logits."""

from collections.abc import Sequence

import numpy as np
from keras import ops
from matplotlib import ticker

from keras_llm.backend.chunks import chunk_rows
from keras_llm.losses import (
    MaskedSparseCategoricalCrossentropy,
    MaskedSparseCategoricalFocalCrossentropy,
)
from keras_llm.plots.drawing import add_legend, line_style, new_axes

# Thousandths, without the ends: there the logarithm of the label or of all others is not finite.
PROBABILITIES = np.arange(1, 1000) / 1000
FLOAT32 = 4  # bytes


def focal(gamma: Sequence[float] = (0, 1, 2, 5), ax=None):
    """The focal loss of one token by the probability p of its label.

        l(p) = (1 - p)^gamma * -ln p

    gamma = 0 is cross entropy. The larger gamma, the less a token costs whose label the model
    already finds likely, and the more of the gradient is left to the others. The numbers are those
    of `losses.MaskedSparseCategoricalFocalCrossentropy`.

    Args:
        gamma: The values to compare.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes, one line for each gamma.

    Raises:
        ValueError: a negative gamma.

    Example:
    >>> from keras_llm import plots
    >>> ax = plots.focal(gamma=[2])
    >>> p, loss = ax.lines[0].get_data()
    >>> float(p[499]), round(float(loss[499]), 4)         # (1 - 0.5)^2 * ln 2
    (0.5, 0.1733)
    """
    losses = {f"γ = {g:g}": MaskedSparseCategoricalFocalCrossentropy(gamma=g) for g in gamma}
    ax = new_axes(ax)
    # Without smoothing, the size of the vocabulary makes no difference.
    draw_formulas(losses, 2, ax)
    ax.set_ylim(0, 2.5)
    add_legend(ax)
    return ax


def smoothing(
    vocab_size: int = 32_000, label_smoothing: Sequence[float] = (0.0, 0.1, 0.2), ax=None
):
    """The smoothed loss of one token by the probability p of its label.

    The other V - 1 classes share 1 - p evenly, so with smoothing e

        l(p) = (1 - e) * -ln p + e * mean_j(-ln p_j)

    Without smoothing more certainty always costs less. With it the loss is least at
    p = 1 - e + e / V, the dot, and never 0: that is why a smoothed loss is not the log of a
    perplexity. The numbers are those of `losses.MaskedSparseCategoricalCrossentropy`.

    Args:
        vocab_size: V.
        label_smoothing: The values of e to compare.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes, one line for each e.

    Raises:
        ValueError: an e outside [0, 1), or less than two classes.

    Example:
    >>> from keras_llm import plots
    >>> ax = plots.smoothing(vocab_size=1_000, label_smoothing=[0.1])
    >>> p, loss = ax.lines[0].get_data()
    >>> float(p[loss.argmin()])
    0.9
    """
    losses = {
        f"e = {e:g}": MaskedSparseCategoricalCrossentropy(label_smoothing=e)
        for e in label_smoothing
    }
    ax = new_axes(ax)
    lines = draw_formulas(losses, vocab_size, ax)
    for line in lines:
        p, loss = line.get_data()
        best = loss.argmin()
        if p[best] < p[-1]:
            dot, look = (p[best], loss[best]), {"color": line.get_color()}
            ax.plot(*dot, "o", **look)
            look |= {"textcoords": "offset points", "ha": "center", "size": "small"}
            ax.annotate(f"least at {p[best]:.3g}", dot, (0, -14), **look)
    add_legend(ax)
    return ax


def draw_formulas(losses: dict, vocab_size: int, ax):
    """One line a loss: its `token_loss` of a label of probability p, the rest spread evenly."""
    p = PROBABILITIES
    if vocab_size < 2:
        raise ValueError(f"vocab_size must be at least 2. Received: vocab_size={vocab_size}")
    # Logits that are log-probabilities have a log-sum-exp of 0.
    others = np.log((1 - p) / (vocab_size - 1))
    mean_logit = (np.log(p) + (vocab_size - 1) * others) / vocab_size
    numbers = [ops.convert_to_tensor(x, "float32") for x in (-np.log(p), 0 * p, mean_logit)]
    lines = []
    for index, (name, loss) in enumerate(losses.items()):
        values = ops.convert_to_numpy(loss.token_loss(*numbers))
        lines += ax.plot(p, values, label=name, **line_style(index))
    ax.set(xlabel="probability of the label", ylabel="loss of the token, nats", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    return lines


def loss_memory(
    vocab_sizes: Sequence[int] = (8_192, 32_000, 50_257, 128_256, 262_144),
    tokens: int = 4_096,
    d_model: int = 512,
    device_type: str = "cpu",
    ax=None,
):
    """Memory of the loss by the size of the vocabulary: whole logits, and one pass over it.

    Computed, not measured: the float32 numbers that have to be there at once, the gradient of the
    head's matrix in both,

        whole logits:  4 bytes * V * (3 * tokens + d_model)       logits, log-softmax, its gradient
        one pass:      4 bytes * V * (chunk rows + d_model)

    with as many rows a chunk as `LanguageModel` takes on PyTorch.

    Args:
        vocab_sizes: The values of V.
        tokens: Tokens a batch that count: batch size times length.
        d_model: Width of the model.
        device_type: `"cpu"`, or `"cuda"` for the larger chunks of a GPU.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes, two lines in bytes: whole logits, one pass.

    Raises:
        ValueError: a size that is not positive.

    Example:
    >>> from keras_llm import plots
    >>> ax = plots.loss_memory([50_257], tokens=2_048, d_model=256)
    >>> whole, one_pass = (float(line.get_ydata()[0]) for line in ax.lines)
    >>> round(whole / one_pass, 1)
    8.3
    """
    sizes = np.sort(np.asarray(vocab_sizes, "int64"))
    if not sizes.size or min(sizes[0], tokens, d_model) < 1:
        raise ValueError(
            "vocab_sizes, tokens and d_model must be positive. "
            f"Received: vocab_sizes={vocab_sizes}, tokens={tokens}, d_model={d_model}"
        )
    rows = np.array([min(chunk_rows(int(size), device_type), tokens) for size in sizes])
    held = {"whole logits": 3 * tokens + d_model, "one pass": rows + d_model}
    ax = new_axes(ax)
    for index, (name, columns) in enumerate(held.items()):
        look = {"marker": "o", "clip_on": False, **line_style(index)}
        ax.plot(sizes, FLOAT32 * sizes * columns, label=name, **look)
    title = f"{tokens:,} tokens, d_model {d_model:,}: computed, not measured"
    ax.set(xlabel="size of the vocabulary", ylabel="memory", title=title)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    ax.yaxis.set_major_formatter(ticker.EngFormatter("B"))
    add_legend(ax)
    return ax
