"""Generation: choose a token, compute the next logits, repeat, in one compiled step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_llm.backend.host import to_numpy
from keras_llm.backend.inference import inference_mode
from keras_llm.backend.python_loop import python_loop
from keras_llm.backend.repeated import Repeated, compiled
from keras_llm.tensor import Tensor


class Decoding(NamedTuple):
    """What is kept between two steps."""

    model: Any  # what the model keeps of the tokens so far
    choice: Any  # what the chooser keeps of them

    def selected(self, rows: np.ndarray) -> Decoding:
        """That of these rows."""
        return Decoding(
            self.model.selected(self.choice.places_of(rows)), self.choice.selected(rows)
        )


class Decoder:
    """Generates token by token.

    Args:
        begin: `(ids, model state) -> (logits, model state)`: takes all ids that are given, and
            returns the logits `[rows, vocab]` of the first tokens.
        extend: The same for the tokens that were chosen last, `[rows, 1]`.
        choose: `(logits, choice) -> (choice, parents, goes_on)`: chooses the next tokens,
            `choice.last` `[rows, 1]`; `parents` are the rows that they continue, or None for each
            its own; `goes_on` is a boolean scalar: whether any row needs more tokens.
        layers: All layers that these call.
        example: A function from sizes to a `Decoding` of these sizes, as of `Repeated`.
        jit_compile: As of `Repeated`.
        run_eagerly: Whether nothing is to be compiled.
    """

    def __init__(self, begin, extend, choose, example, layers, jit_compile, run_eagerly):
        def advance(decoding, ids, extend):
            logits, model = extend(ids, decoding.model)
            choice, parents, goes_on = choose(logits, decoding.choice)
            model = model if parents is None else model.reordered(parents)
            return Decoding(model, choice), goes_on

        def first(decoding, ids):
            return advance(decoding, ids, begin)

        def step(decoding):
            return advance(decoding, decoding.choice.last, extend)

        if run_eagerly:
            self.first, self.steps = first, lambda *arguments: (python_loop(step), True)
        else:
            self.first = compiled(first, layers, jit_compile)
            self.steps = Repeated(step, layers, example, jit_compile).with_weights

    def __call__(self, ids: Tensor, decoding: Decoding) -> list[np.ndarray]:
        """The ids of each row: `ids` are taken at once, then one token after another is chosen."""
        with inference_mode():
            decoding, goes_on = self.first(decoding, ids)
            return self.rows(decoding) if goes_on else decoding.choice.rows()

    def rows(self, decoding: Decoding) -> list[np.ndarray]:
        """The same, when some tokens have been chosen."""
        choice, position = decoding.choice, int(decoding.model.position)
        steps = int(choice.limit) - int(choice.place)
        run, takes_any_size = self.steps(decoding, choice.last.shape[0], steps)
        choice = choice.pausing(choice.running.shape[0] // 2 if takes_any_size else 0)
        goes_on = True
        while goes_on:
            model = decoding.model.narrowed(position + 1) if takes_any_size else decoding.model
            steps = model.places.shape[0] - position
            after, goes_on = run(Decoding(model, choice), steps)
            choice, position = after.choice, position + steps
            decoding = Decoding(decoding.model.latest(after.model), choice)
        rows, running = choice.rows(), np.flatnonzero(to_numpy(choice.running))
        if len(running) and choice.place < choice.limit:
            # Half of the rows have ended: the others go on without them.
            for number, row in zip(running, self.rows(decoding.selected(running)), strict=True):
                rows[number] = row
        return rows
