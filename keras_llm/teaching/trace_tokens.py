"""Each token of a batch: what the model should say, what it said, and what that cost."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import keras_mask
from keras_llm.losses import MaskedLoss
from keras_llm.teaching.loss_facts import as_object
from keras_llm.teaching.words import name_of


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What there is to know of each token, arrays `[batch, length]`; None where it is not known.

    Attributes:
        labels: What the model should say.
        said: Its most probable token.
        nll: -log of the probability that it gave the label.
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
        """What the model gave each label."""
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


def read_tokens(loss, y, sample_weight, logits) -> Tokens:
    """Reads the tokens of a batch from its logits.

    Args:
        loss: What `compile` was given.
        y, sample_weight: The batch's labels and weights.
        logits: What the model returned.
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
    if labels is not None and hasattr(loss, "from_logits"):
        known["nll"] = host(label_nll(labels, logits, loss.from_logits))
    if isinstance(loss, MaskedLoss):
        losses, weights = map(host, loss.per_token(y, logits, sample_weight))
        divisor = weights.sum() if loss.reduction == "mean" else None
        return Tokens(**known, losses=losses, weights=weights, divisor=divisor)
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy) and labels is not None:
        return Tokens(**known, **of_stock(loss, labels, sample_weight, logits))
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


def of_stock(loss, labels, sample_weight, logits) -> dict:
    """Losses, weights and divisor of Keras's own crossentropy of ids."""
    config = {**loss.get_config(), "reduction": "none"}
    losses = host(keras.losses.SparseCategoricalCrossentropy.from_config(config)(labels, logits))
    mask = keras_mask(logits)
    counts = np.ones(labels.shape) if mask is None else host(mask)
    counts = counts * (labels != config["ignore_class"])
    weights = counts
    if sample_weight is not None:
        given = host(sample_weight)
        weights = counts * given.reshape(given.shape + (1,) * (2 - given.ndim))
    divisor = {"sum": None, "mean_with_sample_weight": weights.sum()}
    return {
        "losses": losses,
        "weights": weights,
        "divisor": divisor.get(loss.reduction, counts.sum()),
    }


def host(tensor, dtype="float64") -> np.ndarray:
    """A tensor's numbers; floats with room for a long sum."""
    array = ops.convert_to_numpy(tensor)
    is_float = not np.issubdtype(array.dtype, np.integer)
    return array.astype(dtype) if dtype and is_float else array
