"""Batches for a decoder-only model: from every token, predict the next."""

import os
from collections.abc import Iterable, Mapping

import numpy as np

from keras_llm.arguments import check_bool, check_positive_int
from keras_llm.data.batch_order import BatchOrder
from keras_llm.data.corpus import iterate_rows
from keras_llm.data.data_loader import LOADER_NAMES, DataLoader, check_batches
from keras_llm.data.hugging_face_tokenizer import as_tokenizer
from keras_llm.data.mixture import MixedBlocks, MixtureOrder, check_mixture_weights
from keras_llm.data.token_array import TokenArray
from keras_llm.data.token_manifest import differences
from keras_llm.data.token_rows import DocumentRows, StreamRows
from keras_llm.data.token_shards import TokenShards
from keras_llm.data.tokenizer import Tokenizer
from keras_llm.data.tokenizer_fingerprint import tokenizer_fingerprint
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
        "probabilities": "weights=...",
        "sampling_weights": "weights=...",
    }
)
def causal_lm(
    texts: Iterable | TokenShards | str | os.PathLike | Mapping,
    tokenizer: Tokenizer | None = None,
    seq_len: int | None = None,
    batch_size: int | None = None,
    *,
    weights: Mapping[str, float] | None = None,
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
        num_workers: Processes which prepare batches, as in `torch.utils.data.DataLoader`. Little
            is left to prepare, so 0 is fastest here, unless a slow disk is waited for.

    Returns:
        A `torch.utils.data.DataLoader`, which `fit` accepts on every backend, of pairs of int64
        tensors `[batch, seq_len]`. Padding is `tokenizer.pad_id` in both: give the loss and the
        metrics `ignore_index=tokenizer.pad_id`. For a tokenizer whose `pad_id` is None, and for one
        of transformers, the label of padding is -100, their default `ignore_index`, and the id
        there is `end_id`.

    Raises:
        TypeError: `texts` is not text, or has no tokenizer; `pack` or `shuffle` is no boolean.
        ValueError: a size is not a positive integer, there is no token to predict, or a text
            contains the id of padding, as every text does where `pad_id` is `end_id`. Or `texts`
            were encoded by another tokenizer, or weights are not those of the sources.

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
    if tokenizer is not None:
        tokenizer = as_tokenizer(tokenizer)
    if weights is None:
        blocks = Blocks(as_tokens(texts, tokenizer, "texts"), seq_len, pack, "texts")
        return DataLoader(blocks, BatchOrder(len(blocks), batch_size, shuffle, seed), num_workers)
    if not isinstance(texts, Mapping) or not texts or not shuffle:
        raise ValueError(
            "A mixture, which weights are for, must be a dictionary of sources and have "
            f"shuffle=True. Received: texts of type {type(texts).__name__}, shuffle={shuffle}"
        )
    check_mixture_weights(weights, texts)
    sources = {}
    for name, source in texts.items():
        label = f"texts[{name!r}]"
        sources[name] = Blocks(as_tokens(source, tokenizer, label), seq_len, pack, label)
    _check_same_ids({name: blocks.tokens for name, blocks in sources.items()})
    sizes = {name: len(blocks) for name, blocks in sources.items()}
    order = MixtureOrder(sizes, weights, batch_size, seed)
    return DataLoader(MixedBlocks(sources), order, num_workers)


def as_tokens(texts, tokenizer, name: str) -> TokenArray | TokenShards:
    """Texts encoded, or tokens that are; errors call them by their `name` as an argument.

    Args:
        texts: Texts, tokens, or a directory of tokens.
        tokenizer: What `as_tokenizer` returned, or None.
        name: What the caller calls the texts.
    """
    is_path = isinstance(texts, os.PathLike) or (
        isinstance(texts, str) and (tokenizer is None or os.path.isdir(texts))
    )
    tokens = TokenShards(texts) if is_path else texts
    if isinstance(texts, Mapping):
        raise TypeError(
            f'{name} must be one split, such as corpus["train"], or a dictionary of sources with '
            f"weights. Received: a mapping with the keys {list(texts)}"
        )
    if not isinstance(tokens, TokenShards):
        if tokenizer is None:
            raise TypeError(
                f"{name} must be given with a tokenizer, unless data.tokens has encoded them. "
                f"Received: {name} of type {type(texts).__name__}, tokenizer=None"
            )
        joined = ("\n".join(row) for row in iterate_rows(texts, name))
        start = getattr(tokenizer, "begin_ids", ())
        return TokenArray(joined, tokenizer, start, end=(tokenizer.end_id,))
    if tokenizer is not None:
        changes = differences(tokens.tokenizer, tokenizer_fingerprint(tokenizer))
        if changes:
            raise ValueError(
                f"tokenizer must be the one that encoded {tokens.directory}, or None. "
                f"Changed: {changes}"
            )
    return tokens


def _check_same_ids(sources):
    """Raises unless all sources that are encoded were encoded alike."""
    encoded = {name: each for name, each in sources.items() if isinstance(each, TokenShards)}
    for name, each in encoded.items():
        first = next(iter(encoded))
        if changes := differences(encoded[first].tokenizer, each.tokenizer):
            raise ValueError(
                "One tokenizer must have encoded all sources. "
                f"Between {first!r} and {name!r}: {changes}"
            )


class Blocks:
    """Rows of at most `seq_len` labels, and the ids before them.

    Args:
        tokens: The texts.
        seq_len: Positions per row.
        pack: Whether a row goes on after the end of a text.
        name: What the caller calls the texts.

    Raises:
        ValueError: there is no token to predict.
    """

    fixed_length = True

    def __init__(self, tokens: TokenArray | TokenShards, seq_len: int, pack: bool, name: str):
        self.tokens, self.seq_len, self.pack = tokens, seq_len, pack
        self.rows = (StreamRows if pack else DocumentRows)(tokens, seq_len)
        if not len(self.rows):
            raise ValueError(
                f"{name} must hold at least one token to predict. "
                f"Received: {len(tokens)} texts of {tokens.num_tokens - len(tokens)} tokens in all"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens.ids_and_labels(*self.rows.locate(rows), self.seq_len)

    def fingerprint(self) -> dict:
        """What the rows depend on."""
        tokens = self.tokens.fingerprint()
        return {"seq_len": self.seq_len, "pack": self.pack, "tokens": tokens}
