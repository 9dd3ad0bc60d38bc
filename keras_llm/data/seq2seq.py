"""Batches for an encoder-decoder model: read a source, write its target."""

from collections.abc import Iterable

import numpy as np

from keras_llm.data.data_loader import DataLoader
from keras_llm.data.arguments import check_positive_int, check_tokenizer
from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.corpus import iterate_rows
from keras_llm.data.token_array import TokenArray, padded_rows
from keras_llm.data.tokenizer import Tokenizer


def seq2seq(
    pairs: Iterable,
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer | None = None,
    *,
    batch_size: int,
    max_length: int | None = None,
    pad_to_multiple_of: int = 8,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Batches `({"encoder_ids", "decoder_ids"}, labels)` from pairs of texts, teacher forced.

        encoder_ids:  s0 s1 s2
        decoder_ids:  start t0 t1
        labels:       t0    t1 end

    A batch is padded only to its own longest row, rounded up so that compiled backends see few
    shapes. With `shuffle`, rows of like length meet in a batch, which saves most of the padding.

    Args:
        pairs: A split with two fields, or an iterable of `(source, target)`. Pairs whose source
            is empty, which leave the decoder nothing to read, are left out.
        tokenizer: What encodes the source, and the target too unless the next argument is given.
        target_tokenizer: What encodes the target.
        batch_size: Pairs a batch; the last batch of an epoch may be smaller.
        max_length: Ids beyond this number are cut off from `encoder_ids`, `decoder_ids` and
            `labels`; None keeps them all.
        pad_to_multiple_of: Lengths of batches are rounded up to this, but not above `max_length`.
        shuffle: Whether every epoch has its own order of pairs.
        seed: What the order is drawn from.
        num_workers: Processes which prepare batches, as in `torch.utils.data.DataLoader`. The
            tokens are in memory, so 0 is fastest here.

    Returns:
        A `torch.utils.data.DataLoader`, which `fit` accepts on every backend, of int64 tensors
        `[batch, length]`. Sources are padded with `tokenizer.pad_id`, the rest with
        `target_tokenizer.pad_id`: give that to the loss as `ignore_index`.

    Raises:
        TypeError: `pairs` is not text, or a size is not an integer.
        ValueError: a size is not positive, a row is not a pair, or there is no pair.

    Example:

    >>> from keras_llm import data
    >>> pairs = [("ab", "B A"), ("a", "A")]
    >>> letters = data.train_tokenizer(["ab"], unit="character")
    >>> sounds = data.train_tokenizer(["A B"], unit="word")
    >>> x, labels = next(iter(data.seq2seq(pairs, letters, sounds, batch_size=2,
    ...                                    pad_to_multiple_of=4)))
    >>> x["encoder_ids"].tolist()
    [[4, 5, 0, 0], [4, 0, 0, 0]]
    >>> x["decoder_ids"].tolist(), labels.tolist()
    ([[1, 5, 4, 0], [1, 4, 0, 0]], [[5, 4, 2, 0], [4, 2, 0, 0]])
    """
    check_positive_int(pad_to_multiple_of, "pad_to_multiple_of")
    if max_length is not None:
        check_positive_int(max_length, "max_length")
    target_tokenizer = target_tokenizer or tokenizer
    check_tokenizer(tokenizer)
    check_tokenizer(target_tokenizer, "target_tokenizer")
    sources, targets = [], []
    for position, row in enumerate(iterate_rows(pairs, "pairs")):
        if len(row) != 2:
            raise ValueError(
                "Every row of `pairs` must be (source, target). "
                f"Received: {len(row)} fields at row {position}: {row!r}"
            )
        sources.append(row[0])
        targets.append(row[1])
    start, end = target_tokenizer.start_id, target_tokenizer.end_id
    encoded = Pairs(
        TokenArray.encode(sources, tokenizer),
        TokenArray.encode(targets, target_tokenizer, start=(start,), end=(end,)),
        pad_ids=(tokenizer.pad_id, target_tokenizer.pad_id),
        max_length=max_length,
        pad_to_multiple_of=pad_to_multiple_of,
    )
    if not len(encoded):
        raise ValueError(
            "`pairs` must hold at least one pair whose source is not empty. "
            f"Received: {len(sources)} pairs"
        )
    order = BatchOrder(len(encoded), batch_size, shuffle, seed, encoded.lengths())
    return DataLoader(encoded, order, num_workers)


class Pairs:
    """Encoded sources and targets; a batch of them is padded to its own longest row.

    Args:
        sources: The ids of every source.
        targets: The ids of every target, with the start id before it and the end id after it.
        pad_ids: What fills the rest of a source's row, and of a target's.
        max_length: The most ids a row, or None.
        pad_to_multiple_of: What lengths are rounded up to.
    """

    fixed_length = False

    def __init__(
        self,
        sources: TokenArray,
        targets: TokenArray,
        pad_ids: tuple[int, int],
        max_length: int | None,
        pad_to_multiple_of: int,
    ):
        self.sources = sources
        self.targets = targets
        self.pad_ids = pad_ids
        self.max_length = max_length
        self.multiple = pad_to_multiple_of
        self.rows = np.flatnonzero(sources.lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        rows = self.rows[rows]
        source_pad, target_pad = self.pad_ids
        encoder_ids = self._batch(self.sources, rows, source_pad)
        # What the decoder reads at a position is the label of the position before.
        decoder_ids = self._batch(self.targets, rows, target_pad, drop_last=1)
        labels = self._batch(self.targets, rows, target_pad, drop_first=1)
        return {"encoder_ids": encoder_ids, "decoder_ids": decoder_ids}, labels

    def lengths(self) -> np.ndarray:
        """What to sort rows by for little padding: the target's length, then the source's."""
        source = self._padded_length(self.sources.lengths[self.rows])
        target = self._padded_length(self.targets.lengths[self.rows] - 1)
        return target * (source.max(initial=0) + 1) + source

    def _batch(self, texts, rows, pad_id, drop_first=0, drop_last=0):
        counts = texts.lengths[rows] - drop_first - drop_last
        length = int(self._padded_length(counts.max()))
        return padded_rows(texts.ids, texts.offsets[rows] + drop_first, counts, length, pad_id)

    def _padded_length(self, length):
        rounded = -(-length // self.multiple) * self.multiple
        return rounded if self.max_length is None else np.minimum(rounded, self.max_length)
