"""Batches for a decoder-only model: from every token, predict the next."""

import itertools
from collections.abc import Iterable

import numpy as np

from keras_llm.arguments import check_bool, check_positive_int
from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.corpus import iterate_rows
from keras_llm.data.data_loader import LOADER_NAMES, DataLoader, check_batches
from keras_llm.data.hugging_face_tokenizer import as_tokenizer
from keras_llm.data.token_array import TokenArray
from keras_llm.data.tokenizer import Tokenizer
from keras_llm.names_elsewhere import names_elsewhere


@names_elsewhere(
    {
        **LOADER_NAMES,
        "max_length": "seq_len=...",
        "max_seq_length": "seq_len=...",
        "sequence_length": "seq_len=...",
        "block_size": "seq_len=...",
        "context_length": "seq_len=...",
        "packing": "pack=...",
        "text": "the texts as the first argument",
    }
)
def causal_lm(
    texts: Iterable,
    tokenizer: Tokenizer,
    seq_len: int,
    batch_size: int,
    *,
    pack: bool = True,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Batches `(ids, labels)`, where a label is the token after the id of the same position.

    Every text is encoded and followed by `tokenizer.end_id`.

    - With `pack=True`, the texts make one stream, which is cut into blocks of `seq_len`. There is
      no padding but in the last block, and each token of the stream except the first is a label
      exactly once. Texts follow one another in a row; a model with
      `document_end_id=tokenizer.end_id` nevertheless attends within one text only.
    - With `pack=False`, a row holds one text only, and a long text takes several rows. Each token
      of a text except its first is a label exactly once, and short texts cost padding.

        stream:  t0 t1 t2 t3 t4 t5 t6
        ids:     t0 t1 t2 | t3 t4 t5
        labels:  t1 t2 t3 | t4 t5 t6        seq_len = 3

    Args:
        texts: A split, or an iterable of strings. Where a row has several fields, a newline joins
            them; `split["field"]` picks one.
        tokenizer: What encodes them: one of ours, or of transformers, with the `bos_token` before
            every text if it writes that itself.
        seq_len: Positions per row.
        batch_size: Rows per batch; the last batch of an epoch may be smaller.
        pack: Whether to cut blocks from one stream (True) or to keep texts apart (False).
        shuffle: Whether every epoch has another order of rows.
        seed: Seed of that order.
        num_workers: Processes which prepare batches, as in `torch.utils.data.DataLoader`. The
            tokens are in memory, so 0 is fastest here.

    Returns:
        A `torch.utils.data.DataLoader`, which `fit` accepts on every backend, of pairs of int64
        tensors `[batch, seq_len]`. Padding is `tokenizer.pad_id` in both: give the loss and the
        metrics `ignore_index=tokenizer.pad_id`. For a tokenizer whose `pad_id` is None, and for one
        of transformers, the label of padding is -100, their default `ignore_index`, and the id
        there is `end_id`.

    Raises:
        TypeError: `texts` is not text, or `pack` or `shuffle` no boolean.
        ValueError: a size is not a positive integer, there is no token to predict, or a text
            contains the id of padding, as every text does where `pad_id` is `end_id`.

    Example:

    >>> from keras_llm import data
    >>> texts = ["b a b", "a a"]
    >>> tokenizer = data.train_tokenizer(texts, unit="word")
    >>> ids, labels = next(iter(data.causal_lm(texts, tokenizer, seq_len=4, batch_size=2)))
    >>> ids.tolist()
    [[5, 4, 5, 2], [4, 4, 0, 0]]
    >>> labels.tolist()
    [[4, 5, 2, 4], [4, 2, 0, 0]]
    """
    check_positive_int(seq_len, "seq_len")
    check_batches(batch_size, shuffle, seed, num_workers)
    check_bool(pack, "pack")
    tokenizer = as_tokenizer(tokenizer)
    joined = ("\n".join(row) for row in iterate_rows(texts, "texts"))
    start = getattr(tokenizer, "begin_ids", ())
    tokens = TokenArray(joined, tokenizer, start, end=(tokenizer.end_id,))
    ends = tokens.offsets[[0, -1]] if pack else tokens.offsets
    blocks = Blocks(tokens, ends, seq_len)
    if not len(blocks):
        raise ValueError(
            "texts must hold at least one token to predict. "
            f"Received: {len(tokens)} texts of {len(tokens.ids) - len(tokens)} tokens in all"
        )
    return DataLoader(blocks, BatchOrder(len(blocks), batch_size, shuffle, seed), num_workers)


class Blocks:
    """Rows of at most `seq_len` labels, cut from the tokens between each two of the `ends`.

    Args:
        tokens: The texts.
        ends: Integers, increasing: no row crosses one of them.
        seq_len: Positions per row.
    """

    fixed_length = True

    def __init__(self, tokens: TokenArray, ends: np.ndarray, seq_len: int):
        self.tokens, self.seq_len = tokens, seq_len
        # The last token before an end is a label only: no row starts there.
        starts = [np.arange(a, b - 1, seq_len) for a, b in itertools.pairwise(ends)]
        self.starts = np.concatenate([np.empty(0, np.int64), *starts])
        last = np.repeat(ends[1:] - 1, [len(each) for each in starts])
        self.num_labels = np.minimum(seq_len, last - self.starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens.ids_and_labels(self.starts[rows], self.num_labels[rows], self.seq_len)
