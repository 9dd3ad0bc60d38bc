"""Focal loss: less of what the model already knows."""

from typing import ClassVar

import numpy as np
from keras import ops

from keras_llm.arguments import check_number
from keras_llm.backend import SUM_DTYPE
from keras_llm.losses.masked_sparse_categorical_crossentropy import (
    MaskedSparseCategoricalCrossentropy,
)
from keras_llm.registration import register
from keras_llm.usual_range import Source, UsualRange
from keras_llm.value_text import value_text

FOCAL_LOSS = Source("Focal loss 2017", "https://arxiv.org/abs/1708.02002")

# Below it (1 - p)^gamma has an infinite slope for gamma < 1, though the loss there is 0.
SMALLEST_DOUBT = 1e-30


@register("losses")
class MaskedSparseCategoricalFocalCrossentropy(MaskedSparseCategoricalCrossentropy):
    """Focal loss of the next token, over the tokens that count.

    With p the probability of the label t and S its (smoothed) cross entropy:

        l = alpha_t * (1 - p)^gamma * S + z_loss * logsumexp(z)^2

    Tokens that the model is sure of cost less, so rare ones weigh more. `gamma=0` with no `alpha`
    is cross entropy. Lin et al. 2017, https://arxiv.org/abs/1708.02002.

    Args:
        gamma: The focus, at least 0; 2 in the paper.
        alpha: None, one number for all classes (0.25 in the paper), or a weight for each class.
        ignore_index: Labels of this value do not count. Usually the padding id.
        label_smoothing: Smoothing inside S, in [0, 1).
        z_loss: Weight of the squared log-sum-exp.
        from_logits: Whether predictions are logits; probabilities otherwise.
        reduction: `"mean"` (over the tokens that count, not over their alphas), `"sum"`, `"none"`.
        name: The loss's name.

    Raises:
        ValueError: an argument is out of range; `alpha` has not one weight for each class; a label
            that counts is outside the vocabulary.

    Example:
    >>> import numpy as np
    >>> loss = MaskedSparseCategoricalFocalCrossentropy(gamma=2.0, ignore_index=0)
    >>> logits = np.zeros((1, 2), "float32")              # p = 1/2
    >>> round(float(loss(np.array([1]), logits)), 6)      # (1/2)^2 * ln 2
    0.173287
    """

    notes: ClassVar[dict[str, str]] = {
        **MaskedSparseCategoricalCrossentropy.notes,
        "gamma": "how little the tokens count that the model is sure of",
        "alpha": "weight of a token",
    }
    usual_ranges: ClassVar[dict[str, UsualRange]] = {
        **MaskedSparseCategoricalCrossentropy.usual_ranges,
        "gamma": UsualRange(
            0.0, 5.0, (FOCAL_LOSS,), above="only the worst predictions have a gradient to speak of"
        ),
        "alpha": UsualRange(0.25, 0.75, (FOCAL_LOSS,), below="it makes every gradient small"),
    }

    def __init__(
        self,
        gamma=2.0,
        alpha=None,
        ignore_index=-100,
        label_smoothing=0.0,
        z_loss=0.0,
        from_logits=True,
        reduction="mean",
        name="masked_sparse_categorical_focal_crossentropy",
    ):
        super().__init__(ignore_index, label_smoothing, z_loss, from_logits, reduction, name)
        self.gamma = check_number(gamma, "gamma", "[0, inf)")
        self.alpha = alpha if alpha is None else checked_alpha(alpha)
        if np.ndim(alpha):
            # On the device from the start: a copy in every step is a host-device synchronisation.
            self.class_weights = ops.convert_to_tensor(self.alpha, SUM_DTYPE)

    def equation(self):
        """The equation with its settings, and what it means."""
        crossentropy = self.smoothed_equation()
        crossentropy = f"({crossentropy})" if self.label_smoothing else crossentropy
        equation = f"(1 - p(label))^{value_text(self.gamma)} * {crossentropy}"
        if self.alpha is not None:
            alpha = value_text(self.alpha) if isinstance(self.alpha, float) else "alpha(label)"
            equation = f"{alpha} * {equation}"
        meaning = "how surprised the model is by the label; tokens it is sure of count less"
        return equation + self.z_loss_equation(), meaning

    def token_loss(self, nll, lse, mean_logit, class_weight=1.0):
        """Smoothed cross entropy times the doubt to the power of gamma."""
        doubt = -ops.expm1(-nll)
        # A Python scalar would force a host-device synchronisation.
        smallest = ops.zeros_like(doubt) + SMALLEST_DOUBT
        doubt = ops.where(doubt > smallest, doubt, smallest)
        focus = class_weight * doubt**self.gamma
        if isinstance(self.alpha, float):
            focus = self.alpha * focus
        return focus * self.smoothed(nll, lse, mean_logit) + self.scale_penalty(lse)

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "gamma": self.gamma, "alpha": self.alpha}


def checked_alpha(alpha):
    """`alpha` as a float or a list of floats; raises `ValueError` for anything else."""
    weights = np.asarray(alpha)
    is_number = weights.dtype.kind in "iuf" and weights.ndim < 2 and weights.size > 0
    if not (is_number and np.isfinite(weights).all() and weights.min() >= 0):
        raise ValueError(
            "alpha must be a number or a vector of one weight for each class, none negative. "
            f"Received: alpha={alpha!r}"
        )
    return weights.astype(float).tolist()
