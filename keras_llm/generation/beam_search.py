"""Beam search: the most probable sequence, among those that begin most probably."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_llm.arguments import check_positive_int


def beam_search(
    logits: np.ndarray,
    state: Any,
    step: Callable,
    num_beams: int,
    max_new_tokens: int,
    end_id: int,
    length_penalty: float = 1.0,
) -> list[np.ndarray]:
    """Extends the `num_beams` most probable unfinished sequences of every row, token by token.

    The score of a sequence is `log P(ids) / length ** length_penalty`; both count `end_id`. A row
    is finished when `num_beams` of its sequences have ended and the best of them has a higher score
    than the unfinished ones have now, or when no unfinished one can still get a higher score. At
    `max_new_tokens` the best unfinished sequence is compared as it is. One beam is greedy search;
    with as many beams as there are sequences, the result is the sequence of the highest score.

    Args:
        logits: The logits of the first new token, `[batch * num_beams, vocab]`. The beams of a row
            are next to each other; at the start they are equal.
        state: What the model keeps of the tokens so far. It is only passed on to `step`.
        step: `(ids [batch * num_beams, 1], state, parents) -> (logits, state)`: adds a token to
            every beam, where beam i of the result continues beam `parents[i]` of the state.
        num_beams: The number of unfinished sequences to keep per row.
        max_new_tokens: The most tokens of a sequence.
        end_id: The id that ends a sequence.
        length_penalty: 0 compares probabilities, which favours short sequences; 1 compares mean
            log-probabilities per token; above 1 favours long sequences.

    Returns:
        The best sequence of each row; with `end_id`, if it ended.

    Example:
    >>> first = np.log([[0.4, 0.6, 1e-9]])                       # greedy search takes token 1,
    >>> then = np.log([[0.01, 0.01, 0.98], [0.4, 0.3, 0.3]])     # but after 0 comes a sure end
    >>> step = lambda ids, state, parents: (then[ids[:, 0]], state)
    >>> for num_beams in (1, 2):
    ...     beams = first.repeat(num_beams, axis=0)
    ...     beam_search(beams, None, step, num_beams, max_new_tokens=2, end_id=2)[0].tolist()
    [1, 0]
    [0, 2]
    """
    check_positive_int(num_beams, "num_beams")
    check_positive_int(max_new_tokens, "max_new_tokens")
    rows = [
        _BeamsOfRow(num_beams, max_new_tokens, end_id, length_penalty)
        for _ in range(len(logits) // num_beams)
    ]
    while True:
        for row, log_p in zip(rows, np.split(_log_softmax(logits), len(rows)), strict=True):
            row.extend(log_p)
        if all(row.done for row in rows):
            return [row.best for row in rows]
        ids = np.concatenate([row.unfinished[:, -1:] for row in rows])
        parents = np.concatenate([i * num_beams + row.parents for i, row in enumerate(rows)])
        logits, state = step(ids, state, parents)


class _BeamsOfRow:
    """The beams of one row: the unfinished sequences, and the best finished one."""

    def __init__(self, num_beams, max_new_tokens, end_id, length_penalty):
        self.num_beams = num_beams
        self.max_new_tokens = max_new_tokens
        self.end_id = end_id
        self.length_penalty = length_penalty
        self.unfinished = np.zeros((num_beams, 0), dtype="int64")  # [num_beams, length]
        self.parents = np.arange(num_beams)  # the beam that each continues
        # The beams are equal at first. Only one may be continued, or all would stay equal.
        self.log_p = np.where(self.parents == 0, 0.0, -np.inf)
        self.best: Any = None
        self.best_score = -np.inf
        self.num_ended = 0
        self.done = False

    def extend(self, log_p: np.ndarray) -> None:
        """Adds a token to every beam, by log-probabilities `[num_beams, vocab]`."""
        if self.done:
            return
        totals = (self.log_p[:, None] + log_p).ravel()
        # A beam has one way to end, so at least half of 2 * num_beams candidates do not end.
        ranked = _largest(totals, 2 * self.num_beams)
        totals = totals[ranked]
        parents, tokens = np.divmod(ranked, log_p.shape[1])
        sequences = np.concatenate([self.unfinished[parents], tokens[:, None]], axis=1)
        length = sequences.shape[1]

        ends = (tokens == self.end_id) & np.isfinite(totals)
        # A candidate that ends counts only if it is among the num_beams most probable ones.
        for i in np.flatnonzero(ends[: self.num_beams]):
            self._compete(sequences[i], totals[i])
            self.num_ended += 1

        stays = np.flatnonzero(tokens != self.end_id)[: self.num_beams]
        self.unfinished, self.parents, self.log_p = sequences[stays], parents[stays], totals[stays]

        if length == self.max_new_tokens:
            self._compete(self.unfinished[0], self.log_p[0])
            self.done = True
        else:
            # log_p can only decrease. So no unfinished sequence can get a higher score than the
            # present log_p gives at the next length or at the greatest.
            now, *later = (
                self._score(self.log_p[0], n) for n in (length, length + 1, self.max_new_tokens)
            )
            enough_ended = self.num_ended >= self.num_beams and self.best_score >= now
            self.done = enough_ended or self.best_score >= max(later)

    def _score(self, log_p, length):
        return log_p / length**self.length_penalty

    def _compete(self, sequence, log_p):
        score = self._score(log_p, len(sequence))
        if self.best is None or score > self.best_score:
            self.best, self.best_score = sequence, score


def _largest(values, count):
    """The indices of the `count` largest values, in order; of equal ones, lower indices first."""
    count = min(count, len(values))
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]


def _log_softmax(logits):
    shifted = logits.astype("float64") - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
