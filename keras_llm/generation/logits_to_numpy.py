"""Logits as NumPy arrays, which the samplers read."""

from typing import Any

import numpy as np
from keras import ops

from keras_llm.backend.host import to_numpy


def logits_to_numpy(
    logits: Any, pad_id: int | None = None, end_id: int | None = None
) -> np.ndarray:
    """Logits `[batch, vocab]` as float32, with -inf for `pad_id` unless it is `end_id`.

    Attention masks padding, so a padding id that was generated would be lost for the next token.

    Raises:
        ValueError: the logits are NaN.
    """
    logits = to_numpy(ops.cast(logits, "float32"))
    if np.isnan(logits).any():
        raise ValueError(
            "The model's logits are NaN, so no token can be chosen. Are its weights finite?"
        )
    if pad_id is not None and pad_id != end_id:
        logits[:, pad_id] = -np.inf
    return logits
