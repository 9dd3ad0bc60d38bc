"""How the next token is chosen from its logits."""

import random

import numpy as np


class Sampler:
    """Chooses the next token of every row: the most probable, or a draw from `probabilities`.

    Greedy if no option is given; of equal logits the lowest id wins. Each row draws from a random
    stream of its own, made of the seed and the row's number, so that its tokens do not
    depend on how many rows stand below it or when they end.

    Args:
        temperature: Divides the logits; below 1 sharpens, above 1 flattens. Greater than 0.
        top_k: Draw from the k most probable tokens only.
        top_p: Draw from the fewest most probable tokens that hold this share of the probability
            (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751). In (0, 1].
        seed: Integer; None takes one from Python's `random`, as Keras does, which
            `keras.utils.set_random_seed` makes repeatable.

    Raises:
        ValueError: an option is out of its range.

    Example:
    >>> import numpy as np
    >>> logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    >>> Sampler()(logits).tolist()
    [0, 2]
    >>> Sampler(top_k=1, seed=0)(logits).tolist()
    [0, 2]
    """

    def __init__(
        self,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ):
        if temperature is not None and not temperature > 0:
            raise ValueError(
                "temperature must be greater than 0; for the most probable token every time, "
                f"leave temperature, top_k and top_p out. Received: temperature={temperature}"
            )
        if top_k is not None and not top_k >= 1:
            raise ValueError(f"top_k must be at least 1. Received: top_k={top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1]. Received: top_p={top_p}")
        self.greedy = temperature is None and top_k is None and top_p is None
        self.options = (1.0 if temperature is None else temperature, top_k, top_p)
        self.seeds = np.random.SeedSequence(random.getrandbits(32) if seed is None else seed)
        self.streams = []

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """The chosen ids `[batch]`, from logits `[batch, vocab]`."""
        if self.greedy:
            return np.argmax(logits, axis=-1)
        if not self.streams:
            self.streams = [np.random.default_rng(s) for s in self.seeds.spawn(len(logits))]
        cumulative = np.cumsum(probabilities(logits, *self.options), axis=-1)
        # side="right" steps over ids of probability 0, also where the draw is exactly 0.
        return np.array(
            [
                np.searchsorted(row, stream.random() * row[-1], side="right")
                for row, stream in zip(cumulative, self.streams, strict=True)
            ]
        )


def probabilities(
    logits: np.ndarray,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """What `Sampler` draws from: softmax(logits / temperature), cut to `top_k`, then to `top_p`.

    What is left after each cut is divided by its sum, as in Hugging Face transformers. Of
    equally probable tokens, the lower ids are kept.

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
            f"top_k must be at most the vocabulary, {logits.shape[-1]}. Received: top_k={top_k}"
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
        # A token stays while those before it hold less than top_p: the first always does.
        before = np.cumsum(ranked, axis=-1) - ranked
        ranked[before >= top_p] = 0.0
        ranked /= ranked.sum(axis=-1, keepdims=True)
    np.put_along_axis(p, order, ranked, axis=-1)
    return p
