"""Generation: choose a token, compute the next logits, repeat, in one compiled step."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_llm.backend.inference import inference_mode
from keras_llm.backend.python_loop import python_loop
from keras_llm.backend.repeated import Repeated, compiled
from keras_llm.backend.sizes import rounded_up
from keras_llm.tensor import Tensor


class Decoding(NamedTuple):
    """What is kept between two steps."""

    model: Any  # what the model keeps of the tokens so far
    choice: Any  # what the chooser keeps of them


class Decoder:
    """Generates token by token.

    Args:
        extend: `(ids [rows, length], model state) -> (logits, model state)`: takes tokens, and
            returns the logits `[rows, vocab]` of the next ones.
        choose: `(logits, choice) -> (choice, parents, goes_on)`: chooses the next tokens,
            `choice.last` `[rows, 1]`; `parents` are the rows that they continue, or None for each
            its own; `goes_on` is a boolean scalar: whether any row needs more tokens.
        layers: All layers that these call.
        example: A function from sizes to a `Decoding` of these sizes, as of `Repeated`.
        jit_compile: As of `Repeated`.
        run_eagerly: Whether nothing is to be compiled.
    """

    def __init__(self, extend, choose, example, layers, jit_compile, run_eagerly):
        def advance(decoding, ids):
            logits, model = extend(ids, decoding.model)
            choice, parents, goes_on = choose(logits, decoding.choice)
            model = model if parents is None else model.reordered(parents)
            return Decoding(model, choice), goes_on

        def step(decoding):
            return advance(decoding, decoding.choice.last)

        if run_eagerly:
            self.begin, self.steps = advance, lambda rows, steps: python_loop(step)
        else:
            self.begin = compiled(advance, layers, jit_compile)
            self.steps = Repeated(step, layers, example, jit_compile).with_weights

    def __call__(self, ids: Tensor, decoding: Decoding) -> Any:
        """The last choice: `ids` are taken at once, then token by token."""
        position = ids.shape[1]
        with inference_mode():
            decoding, goes_on = self.begin(decoding, ids)
            goes_on = bool(goes_on)
            steps = decoding.model.places.shape[0] - position
            run = self.steps(decoding.choice.last.shape[0], steps)
            while goes_on:
                model = decoding.model.narrowed(rounded_up(position + 1))
                steps = model.places.shape[0] - position
                after, goes_on = run(Decoding(model, decoding.choice), steps)
                decoding = Decoding(decoding.model.latest(after.model), after.choice)
                position += steps
        return decoding.choice
