"""Choosing token after token: what is kept of it, and the step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_llm.backend.cache import taken, written
from keras_llm.backend.float64 import FLOAT64, float64
from keras_llm.backend.host import to_numpy
from keras_llm.generation.samplers import Sampler, drawn, most_probable
from keras_llm.tensor import Tensor


class Choice(NamedTuple):
    """The tokens that were chosen, and what the next ones are chosen by.

    Attributes:
        tokens: The chosen ids, `[batch, room]`.
        last: The last ones, `[batch, 1]`.
        running: Booleans `[batch]`: which rows have not ended.
        place: Where in `tokens` the next one is written, a scalar like the next five.
        limit: How many tokens are chosen at most.
        pause: With so few running rows, steps are interrupted.
        end_id: The id that ends a row; -1 for none.
        temperature: As in `Sampler`.
        top_p: As in `Sampler`; 1 for none.
        draws: A random number for each token, `[batch, room]`; a scalar where none are drawn.
    """

    tokens: Any
    last: Any
    running: Any
    place: Any
    limit: Any
    pause: Any
    end_id: Any
    temperature: Any
    top_p: Any
    draws: Any

    @classmethod
    def example(cls, batch: int, room: int, is_drawn: bool) -> Choice:
        """A choice of these sizes."""
        with float64():
            shapes = (), (), (batch, room) if is_drawn else ()
            numbers = [ops.zeros(shape, FLOAT64) for shape in shapes]
        return cls(
            ops.zeros((batch, room), "int32"),
            ops.zeros((batch, 1), "int32"),
            ops.ones((batch,), "bool"),
            *(ops.zeros((), "int32") for _ in range(4)),
            *numbers,
        )

    @classmethod
    def start(
        cls, sampler: Sampler, batch: int, room: int, limit: int, end_id: int | None
    ) -> Choice:
        """Before the first token."""
        choice = cls.example(batch, room, is_drawn=not sampler.greedy)
        end_id = -1 if end_id is None else end_id
        choice = choice._replace(
            limit=ops.convert_to_tensor(limit, "int32"),
            end_id=ops.convert_to_tensor(end_id, "int32"),
        )
        if sampler.greedy:
            return choice
        draws = np.zeros((batch, room))
        draws[:, :limit] = sampler.draws(batch, limit)
        with float64():
            return choice._replace(
                temperature=ops.convert_to_tensor(sampler.temperature, FLOAT64),
                top_p=ops.convert_to_tensor(sampler.top_p or 1.0, FLOAT64),
                draws=ops.convert_to_tensor(draws, FLOAT64),
            )

    def pausing(self, count: int) -> Choice:
        """The choice, with steps that are interrupted when only `count` rows run."""
        return self._replace(pause=ops.convert_to_tensor(count, "int32"))

    def places_of(self, rows: np.ndarray) -> np.ndarray:
        """Where in the model's batch these rows are."""
        return rows

    def selected(self, rows: np.ndarray) -> Choice:
        """The choice of these rows."""
        rows = ops.convert_to_tensor(rows)
        return Choice(*(taken(x, rows, axis=0) if len(x.shape) else x for x in self))

    def rows(self) -> list[np.ndarray]:
        """The ids of each row, `end_id` included.

        Raises:
            ValueError: the logits were NaN.
        """
        tokens, end_id = to_numpy(self.tokens)[:, : int(self.place)], int(self.end_id)
        rows = [until_end(row.astype("int64"), end_id) for row in tokens]
        check_chosen(rows)
        return rows


def chooser(sampler: Sampler, ruled_out: int | None):
    """`(logits, choice) -> (choice, None, goes_on)`, with the options of a sampler.

    Args:
        sampler: Whose numbers are not looked at, but for `top_k`: the choice has them.
        ruled_out: An id that is never chosen, or None.
    """
    greedy, top_k, has_top_p = sampler.greedy, sampler.top_k, sampler.top_p is not None

    def choose(logits: Tensor, choice: Choice):
        logits = without(logits, ruled_out)
        if greedy:
            chosen = most_probable(logits)
        else:
            draws = taken(choice.draws, ops.reshape(choice.place, (1,)), axis=1)[:, 0]
            top_p = choice.top_p if has_top_p else None
            chosen = drawn(logits, draws, choice.temperature, top_k, top_p)
        last, place = chosen[:, None], choice.place + 1
        running = choice.running & (chosen != choice.end_id) & (chosen >= 0)
        choice = choice._replace(
            tokens=written(choice.tokens, last, choice.place),
            last=last,
            running=running,
            place=place,
        )
        count = ops.cast(ops.sum(running), "int32")
        return choice, None, (count > choice.pause) & (place < choice.limit)

    return choose


def without(logits: Tensor, ruled_out: int | None) -> Tensor:
    """Logits `[rows, vocab]` in float32, with -inf for an id that is never to be chosen."""
    logits = ops.cast(logits, "float32")
    if ruled_out is None:
        return logits
    is_ruled_out = ops.arange(logits.shape[-1], dtype="int32") == ruled_out
    return ops.where(is_ruled_out, -np.inf, logits)


def until_end(ids: np.ndarray, end_id: int | None) -> np.ndarray:
    """The ids up to and including the first `end_id`."""
    ends = np.flatnonzero(ids == end_id)
    return ids[: ends[0] + 1] if len(ends) else ids


def check_chosen(rows: list[np.ndarray]) -> None:
    """Raises `ValueError` if a token could not be chosen."""
    if any((row < 0).any() for row in rows):
        raise ValueError(
            "The model's logits are NaN, so no token can be chosen. Are its weights finite?"
        )
