"""Texts as ids, one after another in a single array of two bytes per token."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from keras_llm.data.tokenizer import Tokenizer

# The losses' and metrics' default `ignore_index`.
IGNORED_LABEL = -100


class Padding(NamedTuple):
    """What fills the rest of a row.

    Attributes:
        id: Where ids are read.
        label: Where labels are read: the value to ignore.
    """

    id: int
    label: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Padding":
        """The tokenizer's `pad_id` for both; without one, an id that is ignored as a label."""
        if tokenizer.pad_id is None:
            return cls(tokenizer.end_id, IGNORED_LABEL)
        return cls(tokenizer.pad_id, tokenizer.pad_id)


class TokenArray:
    """The ids of many texts: `ids[offsets[i] : offsets[i + 1]]` are those of text i.

    Args:
        ids: Unsigned integers `[tokens]`: all texts, one after another.
        offsets: Integers `[texts + 1]`: the start of each text, and the end of the last one.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray):
        self.ids = ids
        self.offsets = offsets
        self.lengths = np.diff(offsets)

    @classmethod
    def encode(
        cls,
        texts: Iterable[str],
        tokenizer: Tokenizer,
        start: tuple[int, ...] = (),
        end: tuple[int, ...] = (),
    ) -> "TokenArray":
        """Encodes every text once, with the ids `start` before each and `end` after it.

        Raises:
            ValueError: the id of padding is also an id of the texts.
        """
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        arrays = [np.array([*start, *ids, *end], dtype) for ids in tokenizer.encode_each(texts)]
        offsets = np.cumsum([0, *map(len, arrays)])
        ids = np.concatenate([np.empty(0, dtype), *arrays])
        # A start may have the id of padding, as T5's has: it is never a label.
        if np.count_nonzero(ids == tokenizer.pad_id) > len(arrays) * start.count(tokenizer.pad_id):
            raise ValueError(
                "The tokenizer's pad_id must not be an id of the texts, neither as the end of a "
                "text nor as an unknown word: padding is neither read nor learnt. Received: "
                f"pad_id={tokenizer.pad_id}, end_id={tokenizer.end_id}. Load the tokenizer with "
                "another pad_token, or, if it has no token for padding, with pad_token=None: then "
                "labels of padding are -100, the ignore_index that losses and metrics have by "
                "default."
            )
        return cls(ids, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


def padded_rows(
    ids: np.ndarray, starts: np.ndarray, counts: np.ndarray, length: int, pad_id: int
) -> np.ndarray:
    """Row i is `counts[i]` ids from `starts[i]` on, then padding: int64 `[rows, length]`.

    Example:

    >>> ids = np.array([10, 11, 12, 13, 14], np.uint16)
    >>> padded_rows(ids, np.array([0, 3]), np.array([3, 2]), length=4, pad_id=0)
    array([[10, 11, 12,  0],
           [13, 14,  0,  0]])
    """
    positions = np.arange(length)
    inside = positions < counts[:, None]
    found = ids[np.where(inside, starts[:, None] + positions, 0)].astype(np.int64)
    return np.where(inside, found, pad_id)
