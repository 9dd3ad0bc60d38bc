"""The loop: logits, a token, the logits after it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_llm.generation.samplers import Sampler


def generate(
    logits: np.ndarray,
    state: Any,
    step: Callable,
    sampler: Sampler,
    max_new_tokens: int,
    end_id: int | None = None,
) -> list[np.ndarray]:
    """What follows, token by token, until `end_id` or for `max_new_tokens`.

    Args:
        logits: Of the first new token, `[batch, vocab]`.
        state: What the model remembers of the tokens so far; only `step` looks inside.
        step: `(ids [batch, 1], state) -> (logits, state)`: one more token.
        sampler: Chooses ids from logits.
        max_new_tokens: The most tokens a row gets.
        end_id: The id that ends a row.

    Returns:
        The new ids of each row, `end_id` included.

    Example:
    >>> count_up = lambda ids, state: (np.eye(5)[ids[:, 0] + 1], state)
    >>> rows = generate(np.eye(5)[[0, 2]], None, count_up, Sampler(), max_new_tokens=3, end_id=3)
    >>> [row.tolist() for row in rows]
    [[0, 1, 2], [2, 3]]
    """
    columns = []
    running = np.ones(len(logits), bool)
    while True:
        chosen = sampler(logits)
        columns.append(chosen)
        running &= chosen != end_id
        if len(columns) == max_new_tokens or not running.any():
            break
        logits, state = step(chosen[:, None], state)
    return [until_end(row, end_id) for row in np.stack(columns, axis=1)]


def until_end(ids: np.ndarray, end_id: int | None) -> np.ndarray:
    """The ids up to the first `end_id`, with it."""
    ends = np.flatnonzero(ids == end_id)
    return ids[: ends[0] + 1] if len(ends) else ids
