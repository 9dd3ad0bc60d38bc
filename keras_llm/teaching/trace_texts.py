"""Ids as people read them."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

# How much of a text fits on a line.
TEXT_LENGTH = 60


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
