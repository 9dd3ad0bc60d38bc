"""Token-level cross entropy: the loss of language models."""

from typing import ClassVar

from keras import ops

from keras_llm.arguments import check_number
from keras_llm.losses.token_loss import TokenLoss
from keras_llm.registration import register
from keras_llm.usual_range import PALM, Source, UsualRange
from keras_llm.value_text import value_text

TRANSFORMER = Source("Transformer 2017", "https://arxiv.org/abs/1706.03762")


@register("losses")
class MaskedSparseCategoricalCrossentropy(TokenLoss):
    """Cross entropy of the next token, over the tokens that count.

    With logits z, label t, vocabulary size V, smoothing e and p = softmax(z):

        l = (1 - e) * -log p_t + e * mean_j(-log p_j) + z_loss * logsumexp(z)^2

    The defaults are those of `torch.nn.CrossEntropyLoss`, which also spreads `label_smoothing`
    over all V classes (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7).

    Args:
        ignore_index: Labels of this value do not count. Usually the padding id.
        label_smoothing: e, in [0, 1). 0.1 is usual for translation (Vaswani et al. 2017).
        z_loss: Keeps the logits' scale from drifting; 1e-4 in PaLM (Chowdhery et al. 2022,
            https://arxiv.org/abs/2204.02311, section 5).
        from_logits: Whether predictions are logits; probabilities otherwise.
        reduction: `"mean"` (over the tokens that count), `"sum"` or `"none"`. What `fit` and
            `evaluate` of a `LanguageModel` log is per token, also with `"sum"`.
        name: The loss's name.

    Call arguments:
        y_true: Integer labels, `[...]`.
        y_pred: Logits, `[..., vocab]`; reduced in float32 whatever their dtype.
        sample_weight: Weights that broadcast to the labels from the left, or None.

    Returns:
        Nats per token: a float32 scalar, or `[...]` with `reduction="none"`.

    Raises:
        ValueError: a label that counts is outside the vocabulary, or shapes do not fit.
        TypeError: labels are not integers.

    Example:
    >>> import numpy as np
    >>> loss = MaskedSparseCategoricalCrossentropy(ignore_index=0)
    >>> labels = np.array([[2, 1, 0, 0]])                 # two tokens, two of padding
    >>> logits = np.zeros((1, 4, 8), "float32")           # a model that knows nothing
    >>> round(float(loss(labels, logits)), 6), round(float(np.log(8)), 6)
    (2.079442, 2.079442)
    """

    notes: ClassVar[dict[str, str]] = {
        "label_smoothing": "share spread over all tokens",
        "z_loss": "keeps logits from drifting",
    }
    usual_ranges: ClassVar[dict[str, UsualRange]] = {
        "label_smoothing": UsualRange(
            0.0, 0.1, (TRANSFORMER,), above="the label hardly stands out from the other tokens"
        ),
        "z_loss": UsualRange(
            0.0, 1e-4, (PALM,), above="it competes with the cross entropy that it should help"
        ),
    }

    def __init__(
        self,
        ignore_index=-100,
        label_smoothing=0.0,
        z_loss=0.0,
        from_logits=True,
        reduction="mean",
        name="masked_sparse_categorical_crossentropy",
    ):
        super().__init__(ignore_index, from_logits, reduction, name)
        self.label_smoothing = check_number(label_smoothing, "label_smoothing", "[0, 1)")
        self.z_loss = check_number(z_loss, "z_loss", "[0, inf)")
        if z_loss and not from_logits:
            raise ValueError("z_loss is about the scale of logits: it needs from_logits=True.")

    def equation(self):
        """The equation with its settings, and what it means."""
        meaning = "how surprised the model is by the label"
        if self.label_smoothing:
            meaning += ", and how little it leaves for the other tokens"
        return self.smoothed_equation() + self.z_loss_equation(), meaning

    def smoothed_equation(self):
        """The equation of the cross entropy."""
        if not self.label_smoothing:
            return "-log p(label)"
        kept, spread = value_text(1 - self.label_smoothing), value_text(self.label_smoothing)
        return f"{kept} * -log p(label) + {spread} * mean of -log p over all tokens"

    def z_loss_equation(self):
        """What the z-loss adds to the equation."""
        return f" + {value_text(self.z_loss)} * log(sum of exp(logits))^2" if self.z_loss else ""

    def token_loss(self, nll, lse, mean_logit):
        """Smoothed cross entropy plus z-loss."""
        return self.smoothed(nll, lse, mean_logit) + self.scale_penalty(lse)

    def smoothed(self, nll, lse, mean_logit):
        """Cross entropy against the label, a share of it spread over all classes."""
        if not self.label_smoothing:
            # A logit of -inf has no finite mean, and none is needed.
            return nll
        e = self.label_smoothing
        return (1 - e) * nll + e * (lse - mean_logit)

    def scale_penalty(self, lse):
        """The z-loss."""
        return self.z_loss * ops.square(lse) if self.z_loss else 0.0

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "z_loss": self.z_loss,
        }
