"""The prompts that callbacks have a model continue."""

from collections.abc import Sequence
from typing import Any


def checked_prompts(prompts: str | Sequence[str], tokenizer: Any) -> tuple[str, ...]:
    """The prompts as a tuple: an error now is better than one after an epoch of training.

    Raises:
        TypeError: a prompt is no text, or the tokenizer neither encodes nor decodes.
        ValueError: there are prompts and no tokenizer.
    """
    every = (prompts,) if isinstance(prompts, str) else prompts
    if not isinstance(every, Sequence) or not all(isinstance(prompt, str) for prompt in every):
        raise TypeError(f"prompts must be a text or several. Received: prompts={prompts!r}")
    if not every:
        return ()
    if tokenizer is None:
        raise ValueError(
            "prompts need a tokenizer that encodes them and decodes what is generated. "
            f"Received: prompts={prompts!r}, tokenizer=None"
        )
    # A str has an `encode` too.
    if not (hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode")):
        raise TypeError(
            "tokenizer must have encode(text) and decode(ids), as data.load_tokenizer returns one. "
            f"Received: a {type(tokenizer).__name__}"
        )
    return tuple(every)
