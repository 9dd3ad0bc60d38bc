"""Choosing the next token from its logits."""

import random
from typing import ClassVar

import numpy as np
from keras import ops

from keras_llm.arguments import check_non_negative_int, check_number, check_positive_int
from keras_llm.backend.among import is_among
from keras_llm.backend.float64 import FLOAT64, cumulative_sum, float64
from keras_llm.backend.host import to_numpy
from keras_llm.names_elsewhere import NamesElsewhere
from keras_llm.tensor import Tensor


class Sampler(NamesElsewhere):
    """Chooses the next token of every row: the most probable, or a draw from `probabilities`.

    Without an option it takes the most probable token, and of equal ones the lowest id. Every row
    has its own random generator, made from the seed and the row's number, so that its tokens do not
    depend on the other rows.

    Args:
        temperature: Divides the logits; below 1 makes probable tokens more probable, above 1 makes
            the distribution flatter. Greater than 0.
        top_k: Draw from the k most probable tokens only.
        top_p: Draw from the smallest set of most probable tokens whose probability is at least
            `top_p` (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751). In (0, 1].
        seed: Integer of at least 0. None takes one from Python's `random`, as Keras does, so that
            `keras.utils.set_random_seed` makes it repeatable.

    Raises:
        ValueError: an option is out of its range.
        TypeError: an argument by another library's name.

    Example:
    >>> import numpy as np
    >>> logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    >>> Sampler()(logits).tolist()
    [0, 2]
    >>> Sampler(top_k=1, seed=0)(logits).tolist()
    [0, 2]
    """

    write_instead: ClassVar[dict[str, str]] = {
        "do_sample": "temperature=..., top_k=... or top_p=..., each of which turns sampling on",
        "k": "top_k=...",
        "p": "top_p=...",
        "generator": "seed=...",
    }

    def __init__(
        self,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> None:
        if temperature == 0:
            raise ValueError(
                "temperature must be greater than 0. For the most probable token every time, give "
                f"none of temperature, top_k and top_p. Received: temperature={temperature}"
            )
        if temperature is not None:
            check_number(temperature, "temperature", "(0, inf)")
        if top_k is not None:
            check_positive_int(top_k, "top_k")
        if top_p is not None:
            check_number(top_p, "top_p", "(0, 1]")
        if seed is not None:
            check_non_negative_int(seed, "seed")
        self.greedy = temperature is None and top_k is None and top_p is None
        # What a compiled step is made for; the numbers it is given.
        self.kind = self.greedy, top_k, top_p is not None
        self.temperature = 1.0 if temperature is None else float(temperature)
        self.top_k, self.top_p = top_k, top_p
        self.seeds = np.random.SeedSequence(random.getrandbits(32) if seed is None else seed)
        self.generators: list[np.random.Generator] = []

    def __call__(self, logits: Tensor) -> np.ndarray:
        """The chosen ids `[batch]`, from logits `[batch, vocab]`."""
        if len(np.shape(logits)) != 2:
            raise ValueError(
                f"logits must be [batch, vocab]. Received: shape={tuple(np.shape(logits))}"
            )
        if self.greedy:
            return to_numpy(most_probable(logits))
        options = self.temperature, self.top_k, self.top_p
        draws = self.draws(len(logits), 1)[:, 0]
        with float64():
            return to_numpy(drawn(logits, ops.convert_to_tensor(draws), *options))

    def draws(self, rows: int, count: int) -> np.ndarray:
        """The next `count` random numbers of each row, float64 `[rows, count]`."""
        more = self.seeds.spawn(max(0, rows - len(self.generators)))
        self.generators += [np.random.default_rng(seed) for seed in more]
        return np.stack([generator.random(count) for generator in self.generators[:rows]])


def most_probable(logits: Tensor) -> Tensor:
    """The ids of the largest logits `[batch]`; -1 in a row with NaN."""
    logits = ops.convert_to_tensor(logits)
    chosen = ops.argmax(logits, axis=-1)
    largest = ops.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
    return ops.where(ops.isnan(largest), -ops.ones_like(chosen), chosen)


def drawn(
    logits: Tensor,
    draws: Tensor,
    temperature: Tensor,
    top_k: int | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """The ids `[batch]` at which the cumulative probability passes the draws; -1 for NaN.

    Args:
        logits: `[batch, vocab]`.
        draws: Numbers in [0, 1), `[batch]`.
        temperature: As in `Sampler`, like the next two.
        top_k: As in `Sampler`.
        top_p: As in `Sampler`.
    """
    with float64():
        cumulative = cumulative_sum(probabilities(logits, temperature, top_k, top_p))
        total = cumulative[:, -1:]
        # <=, so that an id of probability 0 is never chosen, even if the draw is exactly 0.
        is_before = cumulative <= ops.cast(draws[:, None], FLOAT64) * total
        chosen = ops.sum(ops.cast(is_before, "int32"), axis=-1)
        chosen = ops.cast(chosen, "int32")
        return ops.where(ops.isnan(total[:, 0]), -ops.ones_like(chosen), chosen)


def probabilities(
    logits: Tensor,
    temperature: Tensor = 1.0,
    top_k: int | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """The distribution of `Sampler`: softmax(logits / temperature), then `top_k`, then `top_p`.

    Both set the probability of the other tokens to 0 and divide by the sum of those that remain,
    as in Hugging Face transformers. Of equally probable tokens, the lower ids are kept.

    Args:
        logits: `[batch, vocab]`; -inf for an id that may not be chosen.
        temperature: As in `Sampler`.
        top_k: As in `Sampler`.
        top_p: As in `Sampler`.

    Returns:
        Float64 probabilities, `[batch, vocab]`.

    Raises:
        ValueError: `top_k` is larger than the vocabulary.

    Example:
    >>> import numpy as np
    >>> logits = np.log([[0.5, 0.3, 0.2]])
    >>> ops.convert_to_numpy(probabilities(logits, top_k=2)).round(3).tolist()
    [[0.625, 0.375, 0.0]]
    >>> ops.convert_to_numpy(probabilities(logits, top_p=0.5)).round(3).tolist()
    [[1.0, 0.0, 0.0]]
    """
    check_top_k(top_k, logits.shape[-1])
    with float64():
        logits = ops.cast(logits, FLOAT64) / ops.cast(temperature, FLOAT64)
        p = ops.softmax(logits, axis=-1)
        if top_k is None and top_p is None:
            return p
        ranked = ops.top_k(p, logits.shape[-1] if top_k is None else top_k)[0]
        count, least = ranked.shape[-1], ranked[:, -1:]
        if top_p is not None:
            share = ranked / ops.sum(ranked, axis=-1, keepdims=True)
            # A token is kept if the sum of the more probable ones is below top_p; so is the first.
            is_kept = cumulative_sum(share) - share < ops.cast(top_p, FLOAT64)
            count = ops.sum(ops.cast(is_kept, "int32"), axis=-1, keepdims=True)
            least = ops.take_along_axis(ranked, count - 1, axis=-1)
        p = p * ops.cast(is_among(p, least, count), FLOAT64)
        return p / ops.sum(p, axis=-1, keepdims=True)


def check_top_k(top_k: int | None, vocab_size: int) -> None:
    """Raises `ValueError` for a `top_k` that is larger than the vocabulary."""
    if top_k is not None and top_k > vocab_size:
        raise ValueError(
            f"top_k must be at most {vocab_size}, the size of the vocabulary. "
            f"Received: top_k={top_k}"
        )
