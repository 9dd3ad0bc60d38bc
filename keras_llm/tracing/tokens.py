"""Each token of a batch: its label, the model's prediction, and its loss; and ids as texts."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import loss_setting
from keras_llm.explanation.counted_tokens import stock_weights
from keras_llm.explanation.docstring_text import name_of
from keras_llm.explanation.loss_facts import as_object
from keras_llm.losses import MaskedLoss

# How much of a text fits on a line.
TEXT_LENGTH = 60


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What is known of each token, arrays `[batch, length]`; None where it is not known.

    Attributes:
        labels: The tokens to predict.
        said: The most probable token.
        nll: -log of the label's probability.
        losses: The loss of each token, before its weight.
        weights: 0 where a token does not count, else its weight.
        divisor: What the sum of weighted losses is divided by; None where it is not.
        unknown: Why the losses are not known.
    """

    labels: np.ndarray | None = None
    said: np.ndarray | None = None
    nll: np.ndarray | None = None
    losses: np.ndarray | None = None
    weights: np.ndarray | None = None
    divisor: float | None = None
    unknown: str = ""

    @property
    def probabilities(self) -> np.ndarray | None:
        """The probability of each label."""
        return None if self.nll is None else np.exp(-self.nll)

    @property
    def perplexity(self) -> float:
        """exp of the mean `nll` of the tokens that count."""
        counts = self.weights != 0
        mean = np.average(self.nll[counts], weights=self.weights[counts])
        return float(np.exp(mean))

    @property
    def total(self) -> float:
        """The sum of the losses of the tokens that count."""
        counts = self.weights != 0
        return float((self.losses[counts] * self.weights[counts]).sum())

    @property
    def mean(self) -> float:
        """The sum, divided as the loss divides it; 0 where nothing counts."""
        return self.total if self.divisor is None else self.total / (self.divisor or 1.0)


def read_tokens(loss, y, sample_weight, logits, mask=None) -> Tokens:
    """Reads the tokens of a batch from its logits.

    Args:
        loss: What `compile` was given.
        y, sample_weight: The batch's labels and weights.
        logits: What the model returned.
        mask: The mask of Keras's layers, or None.
    """
    loss, y, sample_weight, logits = map(only, (loss, y, sample_weight, logits))
    if isinstance(logits, dict | list | tuple):
        return Tokens(unknown=f"the model has {len(logits)} outputs, each with a loss of its own")
    if y is None:
        return Tokens(unknown="the batch has no labels")
    loss = as_object(loss)
    labels = loss.labels(y) if isinstance(loss, MaskedLoss) else y
    if len(logits.shape) != 3:
        shape = tuple(logits.shape)
        return Tokens(unknown=f"outputs are not [batch, length, vocab], but {shape}")
    labels = integer_labels(labels, logits)
    known = {"said": host(ops.argmax(logits, axis=-1)), "labels": labels}
    from_logits = loss_setting(loss, "from_logits")
    if labels is not None and from_logits is not None:
        known["nll"] = host(label_nll(labels, logits, from_logits))
    if isinstance(loss, MaskedLoss):
        losses, weights = map(host, loss.per_token(y, logits, sample_weight))
        # Where a backend copies the logits, the copy has lost the mask.
        weights = weights if mask is None else weights * host(mask)
        divisor = weights.sum() if loss.reduction == "mean" else None
        return Tokens(**known, losses=losses, weights=weights, divisor=divisor)
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy) and labels is not None:
        each = type(loss).from_config({**loss.get_config(), "reduction": "none"})
        weights, divisor = stock_weights(loss, labels, sample_weight, mask)
        losses = host(each(labels, logits))
        return Tokens(**known, losses=losses, weights=weights, divisor=divisor)
    return Tokens(**known, unknown=f"{name_of(loss)} is not a loss of one number a token")


def only(parts):
    """What a dictionary or list of one holds; anything else as it is."""
    if isinstance(parts, dict | list | tuple) and len(parts) == 1:
        return next(iter(parts.values() if isinstance(parts, dict) else parts))
    return parts


def integer_labels(labels, logits) -> np.ndarray | None:
    """The labels in numpy, `[batch, length]`; None if they are not ids."""
    labels = host(labels, None)
    if labels.ndim == 3 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    is_ids = np.issubdtype(labels.dtype, np.integer) and labels.shape == tuple(logits.shape[:-1])
    return labels if is_ids else None


def label_nll(labels, logits, from_logits):
    """-log of the probability of each label; NaN for one outside the vocabulary."""
    inside = (labels >= 0) & (labels < logits.shape[-1])
    logits = ops.cast(logits, "float32")
    index = ops.convert_to_tensor(np.where(inside, labels, 0)[..., None])
    given = ops.take_along_axis(logits, index, axis=-1)[..., 0]
    nll = ops.logsumexp(logits, axis=-1) - given if from_logits else -ops.log(given)
    return ops.where(ops.convert_to_tensor(inside), nll, float("nan"))


def host(tensor, dtype="float64") -> np.ndarray:
    """A tensor's numbers; floats with room for a long sum."""
    array = ops.convert_to_numpy(tensor)
    is_float = not np.issubdtype(array.dtype, np.integer)
    return array.astype(dtype) if dtype and is_float else array


@dataclasses.dataclass(frozen=True)
class Texts:
    """Names for ids.

    Attributes:
        source_tokenizer: Of what an encoder reads; None for numbers.
        target_tokenizer: Of everything else.
    """

    source_tokenizer: Any = None
    target_tokenizer: Any = None

    @classmethod
    def of(cls, tokenizer) -> "Texts":
        """From one tokenizer, or a pair for source and target.

        Raises:
            TypeError: a tokenizer cannot decode.
        """
        pair = tokenizer if isinstance(tokenizer, tuple | list) else (tokenizer, tokenizer)
        if len(pair) != 2 or not all(t is None or hasattr(t, "decode") for t in pair):
            raise TypeError(
                "tokenizer must have decode(ids), or be a pair (source, target) of such; labels "
                f"belong to the batch, trace((x, y)). Received: {type(tokenizer).__name__}"
            )
        return cls(*pair)

    def target(self, token) -> str:
        """The text of one id of the target."""
        return token_text(self.target_tokenizer, int(token))

    def source(self, x) -> str:
        """The beginning of the first text that an encoder reads; empty without an encoder."""
        if not isinstance(x, dict) or "encoder_ids" not in x or self.source_tokenizer is None:
            return ""
        row = ops.convert_to_numpy(x["encoder_ids"])[0].tolist()
        text = visible(self.source_tokenizer.decode(row))
        return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def token_text(tokenizer, token: int) -> str:
    """The text of one id; its number in angle brackets where it has none."""
    if tokenizer is None or token < 0:
        return str(token)
    for name in ("pad", "start", "end"):
        if getattr(tokenizer, f"{name}_id", None) == token:
            return f"<{name}>"
    try:
        text = tokenizer.decode([token])
    except ValueError:
        # A vocabulary may be rounded up beyond its tokens.
        text = ""
    return visible(text) or f"<{token}>"


def visible(text: str) -> str:
    """A text on one line, whose ends can be seen.

    >>> visible(" the\\n")
    '␣the⏎'
    """
    text = text.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    if not inner:
        return "␣" * len(text)
    return "␣" * left + inner + "␣" * (len(text) - left - len(inner))


def decoder_input(x, labels) -> np.ndarray | None:
    """The ids that are read position by position, of the labels' shape; None without any."""
    if labels is None:
        return None
    parts = x if isinstance(x, dict) else dict(enumerate(x)) if is_list(x) else {0: x}
    arrays = {name: ops.convert_to_numpy(part) for name, part in parts.items()}
    fitting = {
        name: array
        for name, array in arrays.items()
        if array.shape == labels.shape and np.issubdtype(array.dtype, np.integer)
    }
    if not fitting:
        return None
    # A mask has this shape too; an encoder's ids may have.
    for name in ("decoder_ids", "decoder_input_ids", "input_ids", "token_ids"):
        if name in fitting:
            return fitting[name]
    return fitting[0] if 0 in fitting and not isinstance(x, dict) else None


def is_list(x) -> bool:
    """Whether `x` holds several inputs."""
    return isinstance(x, list | tuple)
