"""Texts as ids, one after another in a single array of two bytes per token."""

import hashlib
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
        self.ids, self.offsets = encode_texts(texts, tokenizer, start, end)
        self.lengths = np.diff(self.offsets)
        self.pad_id, self.pad_label = padding(tokenizer.pad_id, tokenizer.end_id)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """How many ids there are."""
        return len(self.ids)

    @property
    def parts(self) -> list[int]:
        """Where the parts begin that `part_offsets` is called with: all is one part."""
        return [0]

    def part_offsets(self, part: int, check: bool = False) -> np.ndarray:
        """Where each text of a part begins, counted from the part's beginning, and its end."""
        return self.offsets

    def fingerprint(self) -> str:
        """A hash of the ids and of where texts end."""
        return hash_of(self.ids, self.offsets)

    def ids_and_labels(
        self, starts: np.ndarray, counts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids from each start on, and of the id after each of them, `[rows, length]`."""
        ids = padded_rows(self.ids, starts, counts, length, self.pad_id)
        return ids, padded_rows(self.ids, starts + 1, counts, length, self.pad_label)


def encode_texts(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    start: tuple[int, ...] = (),
    end: tuple[int, ...] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all texts, and the offsets `[texts + 1]` between them; as `TokenArray`."""
    dtype = id_dtype(tokenizer.vocab_size)
    arrays = [
        np.array([*(() if tuple(ids[: len(start)]) == start else start), *ids, *end], dtype)
        for ids in tokenizer.encode_each(texts)
    ]
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
    return ids, np.cumsum([0, *map(len, arrays)])


def id_dtype(vocab_size: int) -> np.dtype:
    """Two bytes for an id, or four where the vocabulary does not fit into two."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def padding(pad_id: int | None, end_id: int) -> tuple[int, int]:
    """The id and the label of padding, for a tokenizer with this `pad_id`, which may be None."""
    return (end_id, IGNORED_LABEL) if pad_id is None else (pad_id, pad_id)


def hash_of(*arrays: np.ndarray) -> str:
    """The SHA-256 of arrays: of their dtypes, shapes and values."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(f"{array.dtype.str} {array.shape} ".encode())
        sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()


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
