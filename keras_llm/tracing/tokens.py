"""Each token of a batch: its label, the model's prediction, and its loss; and ids as texts."""

import re
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_llm.backend.keras_private import loss_setting
from keras_llm.checks.first_batch import integers
from keras_llm.explanation.counted_tokens import stock_weights
from keras_llm.explanation.docstring_text import name_of
from keras_llm.explanation.loss_facts import as_object
from keras_llm.losses import MaskedLoss


class Tokens(NamedTuple):
    """What is known of each token, arrays `[batch, length]`; None where it is not known.

    Attributes:
        read: The id that the model reads at the position.
        labels: The tokens to predict.
        said: The most probable token.
        nll: -log of the label's probability.
        losses: The loss of each token, before its weight.
        weights: 0 where a token does not count, else its weight.
        divisor: What the sum of weighted losses is divided by; None where it is not.
        unknown: Why the losses are not known.
    """

    read: np.ndarray | None = None
    labels: np.ndarray | None = None
    said: np.ndarray | None = None
    nll: np.ndarray | None = None
    losses: np.ndarray | None = None
    weights: np.ndarray | None = None
    divisor: float | None = None
    unknown: str = ""


def read_tokens(loss, x, y, sample_weight, logits, mask=None) -> Tokens:
    """Reads the tokens of a batch from its logits, with the mask of Keras's layers if any."""
    loss, y, sample_weight, logits = map(only, (loss, y, sample_weight, logits))
    if isinstance(logits, dict | list | tuple):
        return Tokens(unknown=f"the model has {len(logits)} outputs, each with a loss of its own")
    if y is None:
        return Tokens(unknown="the batch has no labels")
    if len(logits.shape) != 3:
        shape = tuple(logits.shape)
        return Tokens(unknown=f"outputs are not [batch, length, vocab], but {shape}")
    loss = as_object(loss)
    known = Tokens(said=host(ops.argmax(logits, axis=-1)))
    labels = integers(loss.labels(y) if isinstance(loss, MaskedLoss) else y)
    if labels is None or labels.shape != known.said.shape:
        labels = None
    else:
        known = known._replace(labels=labels, read=decoder_input(x, labels.shape))
        from_logits = loss_setting(loss, "from_logits")
        if from_logits is not None:
            known = known._replace(nll=label_nll(labels, logits, from_logits))
    if isinstance(loss, MaskedLoss):
        losses, weights = map(host, loss.per_token(y, logits, sample_weight))
        # Where a backend copies the logits, the copy has lost the mask.
        weights = weights if mask is None else weights * host(mask)
        divisor = weights.sum() if loss.reduction == "mean" else None
    elif isinstance(loss, keras.losses.SparseCategoricalCrossentropy) and labels is not None:
        each = type(loss).from_config({**loss.get_config(), "reduction": "none"})
        weights, divisor = stock_weights(loss, labels, sample_weight, mask)
        losses = host(each(labels, logits))
    else:
        return known._replace(unknown=f"{name_of(loss)} is not a loss of one number a token")
    return known._replace(losses=losses, weights=weights, divisor=divisor)


def only(parts):
    """What a dictionary or list of one holds; anything else as it is."""
    if isinstance(parts, dict | list | tuple) and len(parts) == 1:
        return next(iter(parts.values() if isinstance(parts, dict) else parts))
    return parts


def host(tensor) -> np.ndarray:
    """A tensor's numbers; integers as they are, the rest with room for a long sum."""
    array = ops.convert_to_numpy(tensor)
    return array if np.issubdtype(array.dtype, np.integer) else array.astype("float64")


def label_nll(labels, logits, from_logits) -> np.ndarray:
    """-log of the probability of each label; NaN for one outside the vocabulary."""
    inside = (labels >= 0) & (labels < logits.shape[-1])
    logits = ops.cast(logits, "float32")
    index = ops.convert_to_tensor(np.where(inside, labels, 0)[..., None])
    given = ops.take_along_axis(logits, index, axis=-1)[..., 0]
    nll = ops.logsumexp(logits, axis=-1) - given if from_logits else -ops.log(given)
    return np.where(inside, host(nll), np.nan)


def decoder_input(x, shape) -> np.ndarray | None:
    """The ids that are read position by position, of the labels' shape; None without any."""
    parts = x if isinstance(x, dict) else dict(enumerate(x if isinstance(x, list | tuple) else [x]))
    # A mask has this shape too; an encoder's ids may have.
    names = ("decoder_ids", "decoder_input_ids", "decoder_token_ids", "input_ids", "token_ids")
    for name in names if isinstance(x, dict) else (*names, 0):
        ids = integers(parts.get(name))
        if ids is not None and ids.shape == shape:
            return ids
    return None


def tokenizer_pair(tokenizer) -> tuple:
    """The tokenizers of what an encoder reads and of all else, from one or a pair of them."""
    pair = tokenizer if isinstance(tokenizer, tuple | list) else (tokenizer, tokenizer)
    if len(pair) != 2 or not all(t is None or hasattr(t, "decode") for t in pair):
        raise TypeError(
            "tokenizer must have decode(ids), or be a pair (source, target) of such; labels "
            f"belong to the batch, trace((x, y)). Received: {type(tokenizer).__name__}"
        )
    return tuple(pair)


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
    return re.sub("^ +| +$", lambda spaces: "␣" * len(spaces[0]), text)
