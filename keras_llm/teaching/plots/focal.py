"""How focal loss looks away from what the model knows."""

from collections.abc import Sequence

from keras_llm.losses import MaskedSparseCategoricalFocalCrossentropy
from keras_llm.teaching.plots.drawing import new_axes
from keras_llm.teaching.plots.formula_curves import draw_formulas
from keras_llm.teaching.plots.line_names import name_lines


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
    lines = draw_formulas(losses, 2, ax)
    ax.set_ylim(0, 2.5)
    name_lines(ax, lines)
    return ax
