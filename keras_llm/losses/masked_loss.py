"""What every loss of this library shares: which tokens count, and how their sum is divided."""

from abc import abstractmethod
from typing import ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_bool, check_integer
from keras_llm.backend.ops.logits_pass import weighted
from keras_llm.counted_tokens import IGNORE_INDEX
from keras_llm.names_elsewhere import NamesElsewhere
from keras_llm.token_statistics import divide
from keras_llm.usual_range import UsualRange

REDUCTIONS = ("mean", "sum", "none")


class MaskedLoss(NamesElsewhere, keras.losses.Loss):
    """A loss of one number per token, reduced over the tokens that count.

    With weights w (0 for a token that does not count):

        mean = sum(w * l) / sum(w)      sum = sum(w * l)      none = w * l

    `"mean"` is 0, with gradient 0, where nothing counts. Stock Keras divides by all positions,
    padding too; this divides by the tokens. Weights must not be negative, except with `"sum"`: a
    reward or an advantage as `sample_weight` is then a policy gradient (Williams 1992,
    https://doi.org/10.1007/BF00992696), and the logged loss is divided by sum(|w|).

    Subclasses write `per_token`. For `explain` they may also write `equation`, `notes` and
    `usual_ranges`: see `keras_llm.usual_range`.

    Args:
        ignore_index: Labels of this value do not count.
        from_logits: Whether predictions are logits; probabilities otherwise.
        reduction: `"mean"`, `"sum"` or `"none"`.
        name: The loss's name.
    """

    notes: ClassVar[dict[str, str]] = {}
    usual_ranges: ClassVar[dict[str, UsualRange]] = {}
    write_instead: ClassVar[dict[str, str]] = {
        "ignore_class": "ignore_index=...",
        "pad_token_id": "ignore_index=...",
        "pad_id": "ignore_index=...",
        "smoothing": "label_smoothing=...",
        "weight": "alpha=[one number a class] of the focal loss, whose mean is over the tokens, or "
        "class_weight={id: weight} of fit, whose mean is over the weights, as in PyTorch",
        "class_weight": "class_weight={id: weight} of fit",
        "axis": "nothing: the classes are the last axis",
        "dtype": "nothing: logits are reduced in float32, or in float64 if they are",
    }

    def __init__(self, ignore_index=-100, from_logits=True, reduction="mean", name=None):
        reduction = "none" if reduction is None else reduction
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction must be one of {REDUCTIONS}; 'mean' divides by the tokens that count. "
                f"Received: reduction={reduction!r}"
            )
        ignore_index = check_integer(ignore_index, "ignore_index", IGNORE_INDEX)
        super().__init__(name=name, reduction=reduction)
        self.ignore_index = ignore_index
        self.from_logits = check_bool(from_logits, "from_logits")

    @abstractmethod
    def per_token(self, y_true, y_pred, sample_weight=None):
        """The loss of each token and its weight, two tensors of the labels' shape.

        A weight of 0 marks a token that does not count.
        """

    def sums(self, y_true, y_pred, sample_weight=None):
        """The sum of the loss over the tokens that count, and the sum of their weights."""
        losses, weights = self.per_token(y_true, y_pred, sample_weight)
        return ops.sum(weighted(losses, weights)), ops.sum(ops.abs(weights))

    def labels(self, y_true):
        """The labels in what `fit` was given as `y`."""
        return y_true

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The reduced loss. Labels stay integers; Keras's own `__call__` would cast them."""
        if self.reduction == "none":
            return weighted(*self.per_token(y_true, y_pred, sample_weight))
        total, tokens = self.sums(y_true, y_pred, sample_weight)
        return total if self.reduction == "sum" else divide(total, tokens)

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "ignore_index": self.ignore_index,
            "from_logits": self.from_logits,
        }
