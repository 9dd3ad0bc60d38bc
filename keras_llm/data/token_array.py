"""Texts as ids, one after another in a single array of two bytes per token."""

from collections.abc import Iterable

import numpy as np

from keras_llm.data.tokenizer import Tokenizer

# The losses' and metrics' default `ignore_index`.
IGNORED_LABEL = -100


class TokenArray:
    """The ids of many texts: `ids[offsets[i] : offsets[i + 1]]` are those of text i.

    Args:
        texts: They are encoded once.
        tokenizer: What encodes them. Its `pad_id` fills the rest of a row; without one, an id that
            is ignored as a label does.
        start, end: Ids before and after each text. A text that begins with `start` already, as one
            that a chat template has written may, gets no second one.

    Raises:
        ValueError: the id of padding is also an id of the texts.
    """

    def __init__(
        self,
        texts: Iterable[str],
        tokenizer: Tokenizer,
        start: tuple[int, ...] = (),
        end: tuple[int, ...] = (),
    ):
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        arrays = [
            np.array([*(() if tuple(ids[: len(start)]) == start else start), *ids, *end], dtype)
            for ids in tokenizer.encode_each(texts)
        ]
        self.offsets = np.cumsum([0, *map(len, arrays)])
        self.lengths = np.diff(self.offsets)
        self.ids = ids = np.concatenate([np.empty(0, dtype), *arrays])
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
        has_none = tokenizer.pad_id is None
        self.pad_id = tokenizer.end_id if has_none else tokenizer.pad_id
        self.pad_label = IGNORED_LABEL if has_none else tokenizer.pad_id

    def __len__(self) -> int:
        return len(self.lengths)

    def ids_and_labels(
        self, starts: np.ndarray, counts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids from each start on, and of the id after each of them, `[rows, length]`."""
        ids = padded_rows(self.ids, starts, counts, length, self.pad_id)
        return ids, padded_rows(self.ids, starts + 1, counts, length, self.pad_label)


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
