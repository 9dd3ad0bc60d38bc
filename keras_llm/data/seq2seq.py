"""Batches for an encoder-decoder model: read a source, write its target."""

from collections.abc import Iterable

import numpy as np

from keras_llm.arguments import check_positive_int
from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.batch_shapes import BatchShapes
from keras_llm.data.corpus import iterate_rows
from keras_llm.data.data_loader import LOADER_NAMES, DataLoader, check_batches
from keras_llm.data.hugging_face_tokenizer import as_tokenizer
from keras_llm.data.token_array import TokenArray, hash_of, padded_rows
from keras_llm.data.tokenizer import Tokenizer
from keras_llm.names_elsewhere import names_elsewhere


@names_elsewhere(
    {
        **LOADER_NAMES,
        "seq_len": "max_length=...",
        "max_source_length": "max_length=..., for source and target",
        "max_target_length": "max_length=..., for source and target",
        "max_input_length": "max_length=..., for source and target",
        "source_tokenizer": "it as the second argument, tokenizer",
        "texts": "the pairs as the first argument",
    }
)
def seq2seq(
    pairs: Iterable,
    tokenizer: Tokenizer,
    target_tokenizer: Tokenizer | None = None,
    *,
    batch_size: int,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Batches `({"encoder_ids", "decoder_ids"}, labels)` from pairs of texts, teacher forced.

        encoder_ids:  s0 s1 s2
        decoder_ids:  start t0 t1
        labels:       t0    t1 end

    A batch is padded to the lengths of its longest rows, rounded up. With `shuffle`, rows of
    similar length are put in one batch, which saves most of the padding.

    JAX and TensorFlow compile the training step for every shape of a batch, which may take longer
    than an epoch. So there, by default, all batches have one of at most eight shapes, chosen to
    save padding; small data gets fewer. An incomplete batch is filled up with rows that have no
    labels, since its own number of rows would be one more shape.

    Args:
        pairs: A split with two fields, or an iterable of `(source, target)`. Pairs whose source
            is empty, which leave the decoder nothing to read, are left out.
        tokenizer: What encodes the source, and the target too unless the next argument is given.
            One of transformers encodes a source with its special ids, as `tokenizer(text)` does.
        target_tokenizer: What encodes the target.
        batch_size: Pairs per batch; the last batch of an epoch may be smaller.
        max_length: Ids beyond this number are cut off from `encoder_ids`, `decoder_ids` and
            `labels`; None keeps them all.
        pad_to_multiple_of: Lengths of batches are rounded up to a multiple of this, but not above
            `max_length`. None is 8 on PyTorch, and a few chosen shapes on JAX and TensorFlow.
        shuffle: Whether every epoch has another order of pairs.
        seed: Seed of that order.
        num_workers: Processes which prepare batches, as in `torch.utils.data.DataLoader`. The
            tokens are in memory, so 0 is fastest here.

    Returns:
        A `torch.utils.data.DataLoader`, which `fit` accepts on every backend, of int64 tensors
        `[batch, length]`. Sources are padded with `tokenizer.pad_id`, the rest with
        `target_tokenizer.pad_id`: give that to the loss and the metrics as `ignore_index`. For a
        target tokenizer whose `pad_id` is None, and for one of transformers, the label of padding
        is -100, their default.

    Raises:
        TypeError: `pairs` is not text, or `shuffle` no boolean.
        ValueError: a size is not a positive integer, a row is not a pair, there is no pair, the
            source's tokenizer has no `pad_id`, or a text contains the id of padding, as every
            target does where `pad_id` is `end_id`.

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
    if pad_to_multiple_of is not None:
        check_positive_int(pad_to_multiple_of, "pad_to_multiple_of")
    if max_length is not None:
        check_positive_int(max_length, "max_length")
    check_batches(batch_size, shuffle, seed, num_workers)
    target_tokenizer = tokenizer if target_tokenizer is None else target_tokenizer
    tokenizer = as_tokenizer(tokenizer, is_source=True)
    target_tokenizer = as_tokenizer(target_tokenizer, "target_tokenizer")
    if tokenizer.pad_id is None:
        raise ValueError(
            "tokenizer must have a pad_id, which the model masks in sources. Load it with a "
            "pad_token (its end_token may serve, since no source has an end), and give "
            "the one without a pad_id as target_tokenizer; a tokenizer of transformers needs a "
            "tokenizer.pad_token. Received: pad_id=None"
        )
    sources, targets = [], []
    for position, row in enumerate(iterate_rows(pairs, "pairs")):
        if len(row) != 2:
            raise ValueError(
                "Every row of pairs must be (source, target). "
                f"Received: {len(row)} fields at row {position}: {row!r}"
            )
        sources.append(row[0])
        targets.append(row[1])
    start, end = target_tokenizer.start_id, target_tokenizer.end_id
    encoded = Pairs(
        TokenArray(sources, tokenizer),
        TokenArray(targets, target_tokenizer, start=(start,), end=(end,)),
        batch_size,
        max_length,
        pad_to_multiple_of,
    )
    order = BatchOrder(len(encoded), batch_size, shuffle, seed, encoded.sort_keys())
    return DataLoader(encoded, order, num_workers)


class Pairs:
    """Encoded sources and targets, in batches that are padded to common lengths.

    Args:
        sources: The ids of every source.
        targets: The ids of every target, with the start id before it and the end id after it.
        batch_size: Rows per batch.
        max_length: The largest number of ids in a row, or None.
        pad_to_multiple_of: What lengths are rounded up to; None for a few chosen shapes.
    """

    fixed_length = False

    def __init__(
        self,
        sources: TokenArray,
        targets: TokenArray,
        batch_size: int,
        max_length: int | None,
        pad_to_multiple_of: int | None,
    ):
        self.sources, self.targets = sources, targets
        self.rows = np.flatnonzero(sources.lengths)
        if not len(self.rows):
            raise ValueError(
                "pairs must hold at least one pair whose source is not empty. "
                f"Received: {len(sources)} pairs"
            )
        # What the decoder reads at a position is the label of the position before, so both are
        # shorter than the target by one.
        lengths = np.stack([sources.lengths, targets.lengths - 1], axis=1)[self.rows]
        self.lengths = lengths if max_length is None else np.minimum(lengths, max_length)
        self.shapes = BatchShapes(self.lengths, batch_size, max_length, pad_to_multiple_of)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        num_rows = len(rows)
        # Copies of a row rather than rows of padding: an encoder cannot attend to padding only.
        rows = self.shapes.filled_up(rows)
        lengths = self.shapes.padded(self.lengths[rows].max(axis=0))
        counts = self.lengths[rows].T
        sources, targets, rows = self.sources, self.targets, self.rows[rows]
        encoder_ids = padded_rows(
            sources.ids, sources.offsets[rows], counts[0], lengths[0], sources.pad_id
        )
        decoder_ids, labels = targets.ids_and_labels(targets.offsets[rows], counts[1], lengths[1])
        labels[num_rows:] = targets.pad_label
        return {"encoder_ids": encoder_ids, "decoder_ids": decoder_ids}, labels

    def fingerprint(self) -> dict:
        """A hash of the ids, and of how many of them each row has."""
        sources, targets = self.sources, self.targets
        arrays = (sources.ids, sources.offsets, targets.ids, targets.offsets, self.lengths)
        return {"tokens": hash_of(*arrays)}

    def sort_keys(self) -> np.ndarray:
        """Keys by which rows of similar length are neighbours: target first, then source."""
        source, target = self.shapes.padded(self.lengths).T
        return target * (source.max() + 1) + source
