"""Beam search: the most probable sequence, among those that begin most probably."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_llm.arguments import check_positive_int
from keras_llm.backend.cache import taken, written
from keras_llm.backend.float64 import FLOAT64, float64
from keras_llm.backend.host import to_numpy
from keras_llm.backend.ranking import largest
from keras_llm.generation.choice import check_chosen, without
from keras_llm.tensor import Tensor


class Beams(NamedTuple):
    """The unfinished sequences of each row, the best finished one, and what they are compared by.

    Attributes:
        last: The last ids, `[batch * num_beams, 1]`; the beams of a row are next to each other.
        tokens: The ids of the unfinished sequences, `[batch * num_beams, room]`.
        log_p: Their log-probabilities, `[batch, num_beams]`.
        best: The ids of the best finished sequence, `[batch, room]`.
        best_length: How many they are, `[batch]`.
        best_score: Its score, `[batch]`.
        num_ended: How many sequences have ended, `[batch]`.
        done: Which rows are finished, `[batch]`.
        place: How many tokens the unfinished sequences have, a scalar like the next four.
        limit: How many they have at most.
        pause: As in `Choice`.
        end_id: The id that ends a sequence.
        length_penalty: As in `beam_search`.
    """

    last: Any
    tokens: Any
    log_p: Any
    best: Any
    best_length: Any
    best_score: Any
    num_ended: Any
    done: Any
    place: Any
    limit: Any
    pause: Any
    end_id: Any
    length_penalty: Any

    @classmethod
    def example(cls, batch: int, num_beams: int, room: int) -> Beams:
        """Beams of these sizes."""
        counts = [ops.zeros((batch,), "int32") for _ in range(2)]
        scalars = [ops.zeros((), "int32") for _ in range(4)]
        with float64():
            # The beams are equal at first. Only one may be continued, or all would stay equal.
            first = ops.arange(num_beams, dtype="int32") == 0
            log_p = ops.where(first, ops.zeros((batch, 1), FLOAT64), -np.inf)
            score = ops.zeros((batch,), FLOAT64) - np.inf
            penalty = ops.zeros((), FLOAT64)
        return cls(
            ops.zeros((batch * num_beams, 1), "int32"),
            ops.zeros((batch * num_beams, room), "int32"),
            log_p,
            ops.zeros((batch, room), "int32"),
            counts[0],
            score,
            counts[1],
            ops.zeros((batch,), "bool"),
            *scalars,
            penalty,
        )

    @classmethod
    def start(
        cls, batch: int, num_beams: int, room: int, limit: int, end_id: int, length_penalty: float
    ) -> Beams:
        """Before the first token."""
        with float64():
            penalty = ops.convert_to_tensor(length_penalty, FLOAT64)
        return cls.example(batch, num_beams, room)._replace(
            limit=ops.convert_to_tensor(limit, "int32"),
            end_id=ops.convert_to_tensor(end_id, "int32"),
            length_penalty=penalty,
        )

    def pausing(self, count: int) -> Beams:
        """The beams, with steps that are interrupted when only `count` rows run."""
        return self._replace(pause=ops.convert_to_tensor(count, "int32"))

    @property
    def running(self) -> Tensor:
        """Which rows are not finished."""
        return ~self.done

    def places_of(self, rows: np.ndarray) -> np.ndarray:
        """Where in the model's batch the beams of these rows are."""
        num_beams = self.log_p.shape[1]
        return (rows[:, None] * num_beams + np.arange(num_beams)).ravel()

    def selected(self, rows: np.ndarray) -> Beams:
        """The beams of these rows."""
        beams, rows = map(ops.convert_to_tensor, (self.places_of(rows), rows))
        names = {name: x for name, x in self._asdict().items() if len(x.shape)}
        of_beams = ("last", "tokens")
        return self._replace(
            **{n: taken(x, beams if n in of_beams else rows, axis=0) for n, x in names.items()}
        )

    def rows(self) -> list[np.ndarray]:
        """The best sequence of each row; with `end_id`, if it ended.

        Raises:
            ValueError: the logits were NaN.
        """
        lengths = to_numpy(self.best_length)
        best = to_numpy(self.best).astype("int64")
        rows = [row[:length] for row, length in zip(best, lengths, strict=True)]
        check_chosen(rows)
        return rows

    def score(self, log_p: Tensor, length: Tensor) -> Tensor:
        """`log_p / length ** length_penalty`."""
        return log_p / ops.cast(length, FLOAT64) ** self.length_penalty

    def compared(self, score: Tensor, ids: Tensor) -> Beams:
        """With finished sequences `[batch, room]`, where their scores `[batch]` are the best."""
        is_better = ~self.done & (score > self.best_score)
        return self._replace(
            best=ops.where(is_better[:, None], ids, self.best),
            best_length=ops.where(is_better, self.place + 1, self.best_length),
            best_score=ops.where(is_better, score, self.best_score),
        )

    def continued(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """The sequences `rows` of `tokens`, each with one of the `tokens` after it."""
        return written(taken(self.tokens, rows, axis=0), tokens[:, None], self.place)


def beam_search(num_beams: int, ruled_out: int | None = None):
    """Extends the `num_beams` most probable unfinished sequences of every row, token by token.

    The score of a sequence is `log P(ids) / length ** length_penalty`; both count `end_id`. A row
    is finished when `num_beams` of its sequences have ended and the best of them has a higher score
    than the unfinished ones have now, or when no unfinished one can still get a higher score. At
    `limit` tokens the best unfinished sequence is compared as it is. One beam is greedy search;
    with as many beams as there are sequences, the result is the sequence of the highest score.

    Args:
        num_beams: The number of unfinished sequences to keep per row.
        ruled_out: An id that is never chosen, or None.

    Returns:
        One step: `(logits [batch * num_beams, vocab], beams) -> (beams, parents, goes_on)`, where
        beam i continues beam `parents[i]`, and `goes_on` is whether any row is not finished.

    Example:
    >>> import numpy as np
    >>> logits = np.log([[0.4, 0.6, 1e-9]])                      # greedy search takes token 1,
    >>> then = np.log([[0.01, 0.01, 0.98], [0.4, 0.3, 0.3]])     # but after 0 comes a sure end
    >>> for num_beams in (1, 2):
    ...     step = beam_search(num_beams)
    ...     beams = Beams.start(1, num_beams, room=2, limit=2, end_id=2, length_penalty=1.0)
    ...     beams, _, _ = step(np.repeat(logits, num_beams, axis=0), beams)
    ...     beams, _, _ = step(then[to_numpy(beams.last)[:, 0]], beams)
    ...     beams.rows()[0].tolist()
    [1, 0]
    [0, 2]
    """

    check_positive_int(num_beams, "num_beams")

    def step(logits: Tensor, beams: Beams):
        with float64():
            return extended(ops.cast(without(logits, ruled_out), FLOAT64), beams, num_beams)

    return step


def extended(logits: Tensor, beams: Beams, num_beams: int):
    """The step of `beam_search`."""
    vocab_size = logits.shape[-1]
    log_p = ops.reshape(ops.log_softmax(logits, axis=-1), (-1, num_beams, vocab_size))
    is_broken = ops.any(ops.isnan(log_p[:, :, 0]), axis=-1)
    totals = ops.reshape(beams.log_p[:, :, None] + log_p, (-1, num_beams * vocab_size))
    totals = ops.where(is_broken[:, None], -np.inf, totals)
    # A beam has one way to end, so at least half of 2 * num_beams candidates do not end.
    ranked = largest(totals, 2 * num_beams)
    totals, tokens = ops.take_along_axis(totals, ranked, axis=-1), ranked % vocab_size
    first = (ops.cumsum(ops.ones_like(beams.num_ended)) - 1) * num_beams
    parents = first[:, None] + ranked // vocab_size
    length, is_end = beams.place + 1, tokens == beams.end_id

    # A candidate that ends counts only if it is among the num_beams most probable ones.
    ended = (is_end & ops.isfinite(totals))[:, :num_beams]
    scores = ops.where(ended, beams.score(totals[:, :num_beams], length), -np.inf)
    best = largest(scores, 1)
    score, row, token = (
        ops.take_along_axis(x, best, axis=-1)[:, 0] for x in (scores, parents, tokens)
    )
    beams = beams.compared(score, beams.continued(row, token))
    num_ended = beams.num_ended + ops.cast(ops.sum(ended, axis=-1), "int32")

    stays = largest(ops.cast(~is_end, "int32"), num_beams)
    totals, parents, last = (
        ops.take_along_axis(x, stays, axis=-1) for x in (totals, parents, tokens)
    )
    parents, last = ops.reshape(parents, (-1,)), ops.reshape(last, (-1,))
    unfinished = beams.continued(parents, last)
    now, is_last = beams.score(totals[:, 0], length), length >= beams.limit
    beams = beams.compared(ops.where(is_last, now, -np.inf), taken(unfinished, first, axis=0))
    # log_p can only decrease. So no unfinished sequence can get a higher score than the present
    # log_p gives at the next length or at the greatest.
    next_one, last_one = (beams.score(totals[:, 0], n) for n in (length + 1, beams.limit))
    has_best = (beams.best_score >= next_one) & (beams.best_score >= last_one)
    has_enough = (num_ended >= num_beams) & (beams.best_score >= now)
    done = beams.done | is_last | has_enough | has_best | is_broken
    beams = beams._replace(
        last=last[:, None],
        tokens=unfinished,
        log_p=totals,
        best=ops.where(is_broken[:, None], -1, beams.best),
        num_ended=num_ended,
        done=done,
        place=length,
    )
    return beams, parents, ops.cast(ops.sum(~done), "int32") > beams.pause
