"""Choosing the next token from its logits."""

import random
from typing import ClassVar

import numpy as np

from keras_llm.arguments import check_non_negative_int, check_number, check_positive_int
from keras_llm.names_elsewhere import NamesElsewhere


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
        self.options = (1.0 if temperature is None else temperature, top_k, top_p)
        self.seeds = np.random.SeedSequence(random.getrandbits(32) if seed is None else seed)
        self.generators: list[np.random.Generator] = []

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """The chosen ids `[batch]`, from logits `[batch, vocab]`."""
        if self.greedy:
            return np.argmax(logits, axis=-1)
        if not self.generators:
            self.generators = [np.random.default_rng(s) for s in self.seeds.spawn(len(logits))]
        cumulative = np.cumsum(probabilities(logits, *self.options), axis=-1)
        # With side="right" an id of probability 0 is never chosen, even if the draw is exactly 0.
        return np.array(
            [
                np.searchsorted(row, generator.random() * row[-1], side="right")
                for row, generator in zip(cumulative, self.generators, strict=True)
            ]
        )


def probabilities(
    logits: np.ndarray,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
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
    >>> probabilities(logits, top_k=2).round(3).tolist()
    [[0.625, 0.375, 0.0]]
    >>> probabilities(logits, top_p=0.5).round(3).tolist()
    [[1.0, 0.0, 0.0]]
    """
    if top_k is not None and top_k > logits.shape[-1]:
        raise ValueError(
            f"top_k must be at most {logits.shape[-1]}, the size of the vocabulary. "
            f"Received: top_k={top_k}"
        )
    scaled = logits.astype("float64") / temperature
    p = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    if top_k is None and top_p is None:
        return p

    order = np.argsort(-p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    if top_k is not None:
        ranked[:, top_k:] = 0.0
        ranked /= ranked.sum(axis=-1, keepdims=True)
    if top_p is not None:
        # A token is kept if the sum of the more probable ones is below top_p; so is the first.
        before = np.cumsum(ranked, axis=-1) - ranked
        ranked[before >= top_p] = 0.0
        ranked /= ranked.sum(axis=-1, keepdims=True)
    np.put_along_axis(p, order, ranked, axis=-1)
    return p
