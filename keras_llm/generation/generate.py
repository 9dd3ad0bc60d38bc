"""Generation without beams: choose a token, compute the next logits, repeat."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_llm.arguments import check_positive_int
from keras_llm.generation.samplers import Sampler


def generate(
    logits: np.ndarray,
    state: Any,
    step: Callable,
    sampler: Sampler,
    max_new_tokens: int,
    end_id: int | None = None,
) -> list[np.ndarray]:
    """Generates token by token, until every row has `end_id` or `max_new_tokens` tokens.

    Args:
        logits: The logits of the first new token, `[batch, vocab]`.
        state: What the model keeps of the tokens so far. It is only passed on to `step`.
        step: `(ids [batch, 1], state) -> (logits, state)`: takes the chosen tokens, and returns the
            logits of the next ones.
        sampler: Chooses ids from logits.
        max_new_tokens: The most tokens of a row.
        end_id: The id that ends a row; None to end no row early.

    Returns:
        The new ids of each row, `end_id` included.

    Example:
    >>> count_up = lambda ids, state: (np.eye(5)[ids[:, 0] + 1], state)
    >>> rows = generate(np.eye(5)[[0, 2]], None, count_up, Sampler(), max_new_tokens=3, end_id=3)
    >>> [row.tolist() for row in rows]
    [[0, 1, 2], [2, 3]]
    """
    check_positive_int(max_new_tokens, "max_new_tokens")
    columns: list[np.ndarray] = []
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
    """The ids up to and including the first `end_id`."""
    ends = np.flatnonzero(ids == end_id)
    return ids[: ends[0] + 1] if len(ends) else ids
