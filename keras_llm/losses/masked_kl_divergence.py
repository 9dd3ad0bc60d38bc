"""Distillation: a student's distribution against a teacher's, token by token."""

from typing import ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_number
from keras_llm.backend.keras_private import keras_mask
from keras_llm.counted_tokens import (
    integer_labels,
    is_counted,
    nan_where,
    or_misshaped,
    token_weights,
)
from keras_llm.losses.masked_loss import MaskedLoss
from keras_llm.registration import register
from keras_llm.token_statistics import log_probabilities
from keras_llm.usual_range import Source, UsualRange
from keras_llm.value_text import value_text

DISTILLATION = Source("Hinton et al. 2015", "https://arxiv.org/abs/1503.02531")


@register("losses")
class MaskedKLDivergence(MaskedLoss):
    """Kullback-Leibler divergence from a teacher's distribution, over the tokens that count.

    With student logits z, temperature T and the teacher's distribution q at that temperature:

        l = T^2 * sum_j q_j * (log q_j - log softmax(z / T)_j)

    The factor T^2 keeps gradients of one size whatever T is (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531, section 2). Summed over the vocabulary, unlike
    `torch.nn.KLDivLoss(reduction="mean")`, which divides by its size too.

    Args:
        temperature: T, above 0. Teacher *logits* are softened here; probabilities and
            log-probabilities are used as they are, so take them at the same temperature.
        log_target: The targets are log-probabilities.
        target_from_logits: The targets are the teacher's logits.
        ignore_index: Where a label array comes with the targets, labels of this value don't count.
        from_logits: Whether the student's predictions are logits; probabilities otherwise.
        reduction: `"mean"` (over the tokens that count), `"sum"` or `"none"`. What `fit` and
            `evaluate` of a `LanguageModel` log is per token, also with `"sum"`.
        name: The loss's name.

    Call arguments:
        y_true: The teacher's `[..., vocab]`, or a pair `(teacher, labels)` with integer labels
            `[...]` that say which tokens are padding.
        y_pred: The student's `[..., vocab]`.
        sample_weight: Weights that broadcast to `[...]` from the left; 0 for padding.

    Raises:
        ValueError: an argument is out of range, or shapes do not fit.

    Example:
    >>> import numpy as np
    >>> loss = MaskedKLDivergence(temperature=2.0)
    >>> teacher = np.array([[0.5, 0.5]], "float32")
    >>> student = np.array([[0.0, 0.0]], "float32")       # the same distribution
    >>> round(float(loss(teacher, student)), 6)
    0.0
    """

    notes: ClassVar[dict[str, str]] = {
        "temperature": "softens both distributions",
        "log_target": "the teacher's targets are log-probabilities",
        "target_from_logits": "the teacher's targets are logits",
    }
    usual_ranges: ClassVar[dict[str, UsualRange]] = {
        "temperature": UsualRange(
            1.0,
            20.0,
            (DISTILLATION,),
            below="it sharpens the teacher, which then teaches little more than the labels",
            above="it flattens the teacher until all tokens look alike",
        ),
    }

    def __init__(
        self,
        temperature=1.0,
        log_target=False,
        target_from_logits=False,
        ignore_index=-100,
        from_logits=True,
        reduction="mean",
        name="masked_kl_divergence",
    ):
        super().__init__(ignore_index, from_logits, reduction, name)
        self.temperature = check_number(temperature, "temperature", "(0, inf)")
        if log_target and target_from_logits:
            raise ValueError(
                "log_target and target_from_logits exclude each other: targets are either "
                "log-probabilities or logits. Received: both True"
            )
        self.log_target = bool(log_target)
        self.target_from_logits = bool(target_from_logits)

    def equation(self):
        """The equation with its settings, and what it means."""
        divergence = "sum over all tokens of q * (log q - log p)"
        meaning = "how far p is from the teacher's distribution q"
        if self.temperature == 1:
            return divergence, meaning
        temperature = value_text(self.temperature)
        meaning += f", both softened by the temperature {temperature}"
        return f"{temperature}^2 * {divergence}", meaning

    def per_token(self, y_true, y_pred, sample_weight=None):
        """The divergence of each token and its weight, two tensors of shape `[...]`."""
        if isinstance(y_true, tuple | list) and len(y_true) != 2:
            raise ValueError(
                "y_true must be the teacher's targets, or a pair (teacher, labels). "
                f"Received: {len(y_true)} of them"
            )
        teacher, labels = y_true if isinstance(y_true, tuple | list) else (y_true, None)
        student, teacher = ops.convert_to_tensor(y_pred), ops.convert_to_tensor(teacher)
        if tuple(student.shape) != tuple(teacher.shape):
            raise ValueError(
                "The teacher's targets must have the student's shape "
                f"{tuple(student.shape)}, [..., vocab]. Received: shape {tuple(teacher.shape)}"
            )
        student, teacher = (
            x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")
            for x in (student, teacher)
        )
        if not self.from_logits:
            student = log_probabilities(student)
        log_student = ops.log_softmax(student / self.temperature, axis=-1)
        if self.target_from_logits:
            teacher = ops.log_softmax(teacher / self.temperature, axis=-1)
        if self.target_from_logits or self.log_target:
            probability, log_teacher = ops.exp(teacher), teacher
        else:
            probability, log_teacher = teacher, log_probabilities(teacher)
        # A class that the teacher rules out adds nothing, though its log is infinite.
        terms = probability * (log_teacher - log_student)
        terms = ops.where(probability > 0, terms, ops.zeros_like(terms))
        losses = self.temperature**2 * ops.sum(terms, axis=-1)

        if labels is None:
            counts = ops.ones_like(losses, dtype="bool")
        else:
            labels = integer_labels(labels, ops.shape(student))
            counts = is_counted(labels, self.ignore_index)
        mask = keras_mask(y_pred)
        signed = self.reduction == "sum"
        weights, invalid = token_weights(counts, sample_weight, mask, losses.dtype, signed)
        if labels is not None:
            invalid = or_misshaped(invalid, labels, ops.shape(student))
        if invalid is not None:
            losses = nan_where(invalid, losses)
        return losses, weights

    def labels(self, y_true):
        """The labels of a pair `(teacher, labels)`."""
        return y_true[1] if isinstance(y_true, tuple | list) else y_true

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "log_target": self.log_target,
            "target_from_logits": self.target_from_logits,
        }
