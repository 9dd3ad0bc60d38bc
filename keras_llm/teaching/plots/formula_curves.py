"""The loss of one token as a function of how probable its label is."""

import numpy as np
from keras import ops

from keras_llm.teaching.plots.drawing import line_style

# Thousandths, without the ends: there the label or all others have no finite logarithm.
PROBABILITIES = np.arange(1, 1000) / 1000


def draw_formulas(losses: dict, vocab_size: int, ax):
    """One line a loss: its `token_loss` of a label of probability p, the rest spread evenly.

    Args:
        losses: `keras_llm.losses.TokenLoss` objects by their names.
        vocab_size: Number of classes that share what is left, the label's own included.
        ax: Where to draw.

    Returns:
        The lines.
    """
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
