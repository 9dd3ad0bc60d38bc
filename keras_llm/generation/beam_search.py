"""Beam search: the best sequence among the most probable beginnings."""

from collections.abc import Callable
from typing import Any

import numpy as np


def beam_search(
    logits: np.ndarray,
    state: Any,
    step: Callable,
    num_beams: int,
    max_new_tokens: int,
    end_id: int,
    length_penalty: float = 1.0,
) -> list[np.ndarray]:
    """Keeps the `num_beams` most probable beginnings of every row, and extends them token by token.

    A sequence scores `log P(ids) / length ** length_penalty`, `end_id` counted in both. A row is
    done when `num_beams` of its sequences have ended and the best of them beats the score that the
    open ones have so far, or as soon as no open one can win; at `max_new_tokens` the best open one
    competes as it is. One beam is greedy search; as many beams as there are sequences find the best
    of all.

    Args:
        logits: Of the first new token, `[batch * num_beams, vocab]`; the beams of a row are side by
            side, and equal as yet.
        state: What the model remembers of the tokens so far; only `step` looks inside.
        step: `(ids [batch * num_beams, 1], state, parents) -> (logits, state)`: one more token in
            every beam, where beam i continues what was beam `parents[i]` of the state.
        num_beams: Beginnings that are kept for each row.
        max_new_tokens: The most tokens that a sequence gets.
        end_id: The id that ends a sequence.
        length_penalty: 0 compares probabilities, which favours short sequences; 1 compares their
            mean per token; more favours long ones.

    Returns:
        The best sequence of each row; `end_id` included, where it ended.

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
    rows = [
        _Row(num_beams, max_new_tokens, end_id, length_penalty)
        for _ in range(len(logits) // num_beams)
    ]
    while True:
        for row, log_p in zip(rows, np.split(_log_softmax(logits), len(rows)), strict=True):
            row.extend(log_p)
        if all(row.done for row in rows):
            return [row.best for row in rows]
        ids = np.concatenate([row.open[:, -1:] for row in rows])
        parents = np.concatenate([i * num_beams + row.parents for i, row in enumerate(rows)])
        logits, state = step(ids, state, parents)


class _Row:
    """The beams of one row: the open sequences, and the best one that has ended."""

    def __init__(self, num_beams, max_new_tokens, end_id, length_penalty):
        self.num_beams = num_beams
        self.max_new_tokens = max_new_tokens
        self.end_id = end_id
        self.length_penalty = length_penalty
        self.open = np.zeros((num_beams, 0), dtype="int64")  # [num_beams, length]
        self.parents = np.arange(num_beams)  # the beam that each continues
        # The beams begin equal: only the first may be continued, or all would stay equal.
        self.log_p = np.where(self.parents == 0, 0.0, -np.inf)
        self.best, self.best_score = None, -np.inf
        self.num_ended = 0
        self.done = False

    def extend(self, log_p: np.ndarray) -> None:
        """One more token, by log-probabilities `[num_beams, vocab]`."""
        if self.done:
            return
        totals = (self.log_p[:, None] + log_p).ravel()
        # A beam can end in one way only, so of twice as many candidates enough stay open.
        ranked = _largest(totals, 2 * self.num_beams)
        totals = totals[ranked]
        parents, tokens = np.divmod(ranked, log_p.shape[1])
        sequences = np.concatenate([self.open[parents], tokens[:, None]], axis=1)
        length = sequences.shape[1]

        ends = (tokens == self.end_id) & np.isfinite(totals)
        # An ending that ranks below num_beams was not among the most probable beginnings.
        for i in np.flatnonzero(ends[: self.num_beams]):
            self._compete(sequences[i], totals[i])
            self.num_ended += 1

        stays = np.flatnonzero(tokens != self.end_id)[: self.num_beams]
        self.open, self.parents, self.log_p = sequences[stays], parents[stays], totals[stays]

        if length == self.max_new_tokens:
            self._compete(self.open[0], self.log_p[0])
            self.done = True
        else:
            # log_p only falls: the most that the best open sequence can score is what it would
            # with the log_p of now, at the next length or at the last.
            now, *later = (
                self._score(self.log_p[0], n) for n in (length, length + 1, self.max_new_tokens)
            )
            enough = self.num_ended >= self.num_beams and self.best_score >= now
            self.done = enough or self.best_score >= max(later)

    def _score(self, log_p, length):
        return log_p / length**self.length_penalty

    def _compete(self, sequence, log_p):
        score = self._score(log_p, len(sequence))
        if self.best is None or score > self.best_score:
            self.best, self.best_score = sequence, score


def _largest(values, count):
    """The indices of the `count` largest, in order; of equal values the lower index comes first."""
    count = min(count, len(values))
    near = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return near[np.argsort(-values[near], kind="stable")[:count]]


def _log_softmax(logits):
    shifted = logits.astype("float64") - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
