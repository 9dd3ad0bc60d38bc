"""Equations, notes and usual values of Keras's own losses, metrics and optimizers."""

import keras

from keras_llm.optimizers import Adafactor, AdamW
from keras_llm.optimizers.usual_learning_rate import LION
from keras_llm.usual_range import GPT_3, LATE, NOISY, Source, UsualRange

QLORA = Source("QLoRA 2023", "https://arxiv.org/abs/2305.14314")
SGD = Source("Sutskever et al. 2013", "https://proceedings.mlr.press/v28/sutskever13.html")
SURPRISE = "how surprised the model is by the label"

# The equation and its meaning.
LOSSES = {
    keras.losses.SparseCategoricalCrossentropy: ("-log p(label)", SURPRISE),
    keras.losses.CategoricalCrossentropy: ("-log p(label)", f"{SURPRISE}; labels are one-hot"),
    keras.losses.KLDivergence: (
        "sum over all tokens of q * (log q - log p)",
        "how far p is from the target distribution q",
    ),
    keras.losses.MeanSquaredError: (
        "mean of (target - output)^2",
        "how far the outputs are from the targets",
    ),
}
LOSS_NOTES = {"label_smoothing": "share spread over all classes"}

ACCURACY = "share of the positions whose largest output is the label"
METRICS = {
    "acc": ACCURACY,
    "accuracy": ACCURACY,
    "sparse_categorical_accuracy": ACCURACY,
    "sparse_categorical_crossentropy": "-log of the label's probability",
}

OPTIMIZER_NOTES = {
    **AdamW.notes,
    **Adafactor.notes,
    "momentum": "share of the last update that is added to the next",
    "use_ema": "a moving average of the weights is kept",
}
OPTIMIZER_RANGES = {
    "AdamW": AdamW.usual_ranges,
    "Adam": {name: r for name, r in AdamW.usual_ranges.items() if name != "weight_decay"},
    "Adafactor": Adafactor.usual_ranges,
    "Lion": {
        "beta_1": UsualRange(0.9, 0.95, (LION,), below=NOISY, above=LATE),
        "beta_2": UsualRange(0.98, 0.99, (LION,), below=NOISY, above=LATE),
        "weight_decay": UsualRange(
            0.03, 1.0, (LION,), below="Lion needs 3 to 10 times AdamW's", none="Lion needs some"
        ),
    },
    "SGD": {
        "momentum": UsualRange(
            0.9, 0.99, (SGD,), below="without momentum, SGD hardly trains a transformer"
        ),
    },
}
# An argument of every optimizer, ours too.
GLOBAL_CLIPNORM = UsualRange(
    0.3,
    1.0,
    (QLORA, GPT_3),
    below="so small that many gradients of a healthy run are shortened too",
    above="only the longest gradients are shortened: it hardly protects",
)


def optimizer_ranges(optimizer) -> dict[str, UsualRange]:
    """The usual settings of an optimizer of Keras; of its parent's where it is a subclass."""
    names = (cls.__name__ for cls in type(optimizer).__mro__)
    return next((OPTIMIZER_RANGES[name] for name in names if name in OPTIMIZER_RANGES), {})
