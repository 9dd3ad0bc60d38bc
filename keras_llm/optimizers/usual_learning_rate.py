"""Where the learning rate of published training runs lies, for each optimizer."""

from typing import NamedTuple

# Below so many parameters a model counts as small: it bears a larger learning rate.
SMALL = 10_000_000


class UsualRate(NamedTuple):
    """From where to where the peak of a learning rate usually lies.

    Attributes:
        low, high: The ends; both are usual.
        sources: Who used it: keys of `keras_llm.teaching.typical.SOURCES`.
    """

    low: float
    high: float
    sources: tuple[str, ...]


# GPT-3 trained 125M parameters at 6e-4 and 175B at 6e-5; Pythia's smallest at 1e-3; fine-tuning
# goes down to 1e-5.
ADAM = UsualRate(1e-5, 1e-3, ("roberta", "gpt-3", "pythia"))
# char-rnn's 2e-3 for small recurrent models; nanochat's 4e-3 for its output layer.
ADAM_OF_SMALL_MODELS = UsualRate(1e-5, 4e-3, ("roberta", "char-rnn", "nanochat"))
# Times the size of what is updated.
ADAFACTOR = UsualRate(1e-3, 1e-2, ("t5", "adafactor"))
# 3 to 10 times less than AdamW's.
LION = UsualRate(1e-6, 3e-4, ("lion",))
LION_OF_SMALL_MODELS = UsualRate(1e-6, 1e-3, ("lion",))


def usual_learning_rate(optimizer, parameters: int | None = None) -> UsualRate | None:
    """The usual peak of an optimizer's learning rate; None where nothing is known.

    Args:
        optimizer: A Keras optimizer, ours or stock.
        parameters: How many numbers it updates, where that is known.

    >>> import keras_llm
    >>> usual = usual_learning_rate(keras_llm.optimizers.AdamW(), parameters=100_000_000)
    >>> usual.low, usual.high
    (1e-05, 0.001)
    """
    small = parameters is None or parameters < SMALL
    adam = ADAM_OF_SMALL_MODELS if small else ADAM
    for cls in type(optimizer).__mro__:
        if cls.__name__ in ("Adam", "AdamW"):
            return adam
        if cls.__name__ == "Adafactor":
            # Times the size of what it updates; without that it is a step of Adam's size.
            return ADAFACTOR if getattr(optimizer, "scale_parameter", True) else adam
        if cls.__name__ == "Lion":
            return LION_OF_SMALL_MODELS if small else LION
    return None
