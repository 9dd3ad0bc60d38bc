"""Logits as the samplers read them."""

import numpy as np
from keras import ops


def host_logits(logits, pad_id: int | None = None, end_id: int | None = None) -> np.ndarray:
    """Logits `[batch, vocab]` on the host, with padding ruled out.

    A model cannot see its own padding, so it must not speak it; only where the padding id also
    ends a sequence may it be chosen.

    Raises:
        ValueError: the logits are NaN.
    """
    logits = ops.convert_to_numpy(ops.cast(logits, "float32")).copy()
    if np.isnan(logits).any():
        raise ValueError(
            "The model's logits are NaN, so no token can be chosen: are its weights finite?"
        )
    if pad_id is not None and pad_id != end_id:
        logits[:, pad_id] = -np.inf
    return logits
