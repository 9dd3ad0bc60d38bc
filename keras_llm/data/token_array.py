"""Texts as ids, one after another in a single array: two bytes a token, ready to be sliced."""

from collections.abc import Iterable

import numpy as np

from keras_llm.data.tokenizer import Tokenizer


class TokenArray:
    """The ids of many texts: `ids[offsets[i] : offsets[i + 1]]` are those of text i.

    Args:
        ids: Unsigned integers `[tokens]`: all texts, one after another.
        offsets: Integers `[texts + 1]`: where each text starts, and where the last one ends.
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
        """Encodes every text once, with the ids `start` before each and `end` after it."""
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        arrays = [np.array([*start, *ids, *end], dtype) for ids in tokenizer.encode_each(texts)]
        offsets = np.cumsum([0, *map(len, arrays)])
        return cls(np.concatenate([np.empty(0, dtype), *arrays]), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


def padded_rows(
    ids: np.ndarray, starts: np.ndarray, counts: np.ndarray, length: int, pad_id: int
) -> np.ndarray:
    """From each of `starts` that many ids, then padding: int64 `[rows, length]`.

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
