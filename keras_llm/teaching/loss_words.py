"""The equation of a loss, and what it means."""

import keras

from keras_llm.losses import (
    MaskedKLDivergence,
    MaskedSparseCategoricalCrossentropy,
    MaskedSparseCategoricalFocalCrossentropy,
    TokenLoss,
)
from keras_llm.teaching.facts import shown
from keras_llm.teaching.words import first_sentence, formula

SURPRISE = "how surprised the model is by the right token"


def crossentropy(loss):
    """Cross entropy, smoothed or not."""
    equation, words = "-log p(label)", SURPRISE
    if loss.label_smoothing:
        share = shown(loss.label_smoothing)
        rest = shown(1 - loss.label_smoothing)
        equation = f"{rest} * -log p(label) + {share} * mean of -log p over all tokens"
        words += ", and how little it leaves for others"
    return equation + scale_penalty(loss), words


def focal(loss):
    """Focal loss."""
    smoothed = type(loss)(**{**loss.get_config(), "gamma": 0, "alpha": None, "z_loss": 0})
    inner, _ = crossentropy(smoothed)
    inner = f"({inner})" if loss.label_smoothing else inner
    equation = f"(1 - p(label))^{shown(loss.gamma)} * {inner}"
    if loss.alpha is not None:
        alpha = shown(loss.alpha) if isinstance(loss.alpha, float) else "alpha(label)"
        equation = f"{alpha} * {equation}"
    words = f"{SURPRISE}; sure ones count less"
    return equation + scale_penalty(loss), words


def scale_penalty(loss):
    """The z-loss."""
    return f" + {shown(loss.z_loss)} * log(sum of exp(logits))^2" if loss.z_loss else ""


def kl_divergence(loss):
    """Distillation."""
    t = shown(loss.temperature)
    if loss.temperature == 1:
        equation = "sum over all tokens of q * (log q - log p)"
    else:
        equation = f"{t}^2 * sum over all tokens of q * (log q - log p)"
    softened = "" if loss.temperature == 1 else f", both softened by the temperature {t}"
    return equation, f"how far p is from the teacher's distribution q{softened}"


# Of exactly these classes: a subclass may well be another formula.
OURS = {
    MaskedSparseCategoricalCrossentropy: crossentropy,
    MaskedSparseCategoricalFocalCrossentropy: focal,
    MaskedKLDivergence: kl_divergence,
}
STOCK = {
    keras.losses.SparseCategoricalCrossentropy: ("-log p(label)", SURPRISE),
    keras.losses.CategoricalCrossentropy: (
        "-log p(label)",
        f"{SURPRISE}; labels are one-hot",
    ),
    keras.losses.KLDivergence: (
        "sum over all tokens of q * (log q - log p)",
        "how far p is from the target distribution q",
    ),
    keras.losses.MeanSquaredError: (
        "mean of (target - output)^2",
        "how far the outputs are from the targets",
    ),
}


def equation_and_words(loss) -> tuple[str, str]:
    """The equation of one token's loss and what it means, either empty where nobody says.

    Args:
        loss: A loss, ours, stock or a user's, or a function.

    >>> import keras_llm
    >>> equation_and_words(keras_llm.losses.MaskedSparseCategoricalCrossentropy())[0]
    '-log p(label)'
    """
    kind = type(loss)
    if kind in OURS:
        return OURS[kind](loss)
    if kind in STOCK:
        return STOCK[kind]
    if isinstance(loss, TokenLoss):
        equation, words = formula(kind.token_loss), [first_sentence(kind)]
        words += ["nll = -log p(label)"] if "nll" in equation else []
        return equation, "; ".join(filter(None, words))
    if isinstance(loss, keras.losses.Loss):
        return formula(kind.call), first_sentence(kind)
    return formula(loss), first_sentence(loss)
