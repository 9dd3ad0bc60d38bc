"""What label smoothing asks of a token."""

from collections.abc import Sequence

from keras_llm.losses import MaskedSparseCategoricalCrossentropy
from keras_llm.teaching.plots.drawing import new_axes
from keras_llm.teaching.plots.formula_curves import draw_formulas
from keras_llm.teaching.plots.line_names import name_ends


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
            ax.plot(p[best], loss[best], "o", color=line.get_color())
            ax.annotate(
                f"least at {p[best]:.3g}",
                (p[best], loss[best]),
                (0, -14),
                textcoords="offset points",
                ha="center",
                size="small",
                color=line.get_color(),
            )
    name_ends(ax, lines)
    return ax
