"""The usual peak of the learning rate, for each optimizer."""

import functools

from keras_llm.usual_range import GPT_3, NANOCHAT, Source, UsualRange

# Below so many parameters a model counts as small: it bears a larger learning rate.
SMALL = 10_000_000
ADAFACTOR = Source("Adafactor 2018", "https://arxiv.org/abs/1804.04235")
CHAR_RNN = Source("char-rnn 2015", "https://github.com/karpathy/char-rnn")
LION = Source("Lion 2023", "https://arxiv.org/abs/2302.06675")
PYTHIA = Source("Pythia 2023", "https://arxiv.org/abs/2304.01373")
ROBERTA = Source("RoBERTa 2019", "https://arxiv.org/abs/1907.11692")
T5 = Source("T5 2020", "https://arxiv.org/abs/1910.10683")

rates = functools.partial(
    UsualRange,
    below="smaller than is usual even for fine-tuning: training will be slow",
    above="larger than in published runs of this size: the loss may jump or become NaN",
)
# GPT-3 trained 125M parameters at 6e-4 and 175B at 6e-5; Pythia's smallest at 1e-3; fine-tuning
# goes down to 1e-5.
OF_ADAM = rates(1e-5, 1e-3, (ROBERTA, GPT_3, PYTHIA))
# char-rnn's 2e-3 for small recurrent models; nanochat's 4e-3 for its output layer.
OF_ADAM_FOR_SMALL_MODELS = rates(1e-5, 4e-3, (ROBERTA, CHAR_RNN, NANOCHAT))
# Times the size of what is updated.
OF_ADAFACTOR = rates(1e-3, 1e-2, (T5, ADAFACTOR))
# 3 to 10 times less than AdamW's.
OF_LION = rates(1e-6, 3e-4, (LION,))
OF_LION_FOR_SMALL_MODELS = rates(1e-6, 1e-3, (LION,))


def usual_learning_rate(optimizer, parameters: int | None = None) -> UsualRange | None:
    """The usual peak of an optimizer's learning rate; None where it is not known.

    Args:
        optimizer: A Keras optimizer. One with a method `usual_learning_rate(parameters)`, as ours
            have, says it itself; those of Keras are known by their names.
        parameters: How many numbers it updates; None where that is not known.

    >>> import keras_llm
    >>> usual = usual_learning_rate(keras_llm.optimizers.AdamW(), parameters=100_000_000)
    >>> usual.low, usual.high
    (1e-05, 0.001)
    """
    if hasattr(optimizer, "usual_learning_rate"):
        return optimizer.usual_learning_rate(parameters)
    lion = OF_LION_FOR_SMALL_MODELS if (parameters or 0) < SMALL else OF_LION
    known = {"Adam": of_adam(parameters), "Adafactor": OF_ADAFACTOR, "Lion": lion}
    names = (cls.__name__ for cls in type(optimizer).__mro__)
    return next((known[name] for name in names if name in known), None)


def of_adam(parameters: int | None) -> UsualRange:
    """The usual peak for updates of Adam's size, of a small model where the size is not known."""
    return OF_ADAM_FOR_SMALL_MODELS if (parameters or 0) < SMALL else OF_ADAM
