"""Text to ids and back."""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import keras
import numpy as np
import tokenizers
from tokenizers import decoders, models

from keras_llm.data.tokenizer_folder import (
    TOKENIZER,
    read_tokenizer,
    special_tokens,
    write_tokenizer,
)
from keras_llm.data.unicode_text import check_unicode, valid_texts
from keras_llm.distribution import by_first_process
from keras_llm.names_elsewhere import NamesElsewhere, names_elsewhere
from keras_llm.replaced_files import replaced_files

# They contain spaces, which no learned token can: byte-level tokens write a space as another
# character, words are separated by spaces, and characters are shorter.
PAD, START, END, UNKNOWN = SPECIAL_TOKENS = "<| pad |>", "<| start |>", "<| end |>", "<| unknown |>"
TEXTS_PER_CALL = 1024
MOST_IDS = 2**31 - 1
NO_SPECIAL_IDS = {
    "add_special_tokens": "nothing: special ids are added where batches are made",
    "skip_special_tokens": "nothing: special ids are left out",
    "truncation": "nothing: seq_len or max_length cut where batches are made",
    "padding": "nothing: rows are padded where batches are made",
    "return_tensors": "nothing: the ids are a list",
}
TOKEN_NAMES = {
    "eos_token": "end_token=...",
    "sep_token": "end_token=...",
    "bos_token": "start_token=...",
    "cls_token": "start_token=...",
    "pad_token_id": "pad_token=..., the token",
    "eos_token_id": "end_token=..., the token",
    "bos_token_id": "start_token=..., the token",
    "tokenizer_file": "the path as the first argument",
    "pretrained_model_name_or_path": "the path of its tokenizer.json as the first argument",
}


class Tokenizer(NamesElsewhere):
    """A `tokenizers.Tokenizer` with the ids of padding, start and end.

    `encode` adds no special id, and never makes one out of text that is spelled like it; `decode`
    leaves special ids out.

    Args:
        tokenizer: The tokenizer to wrap. Its padding and truncation are switched off.
        pad_token: Its token that fills the rest of a row; None for a tokenizer without one.
        start_token: Its token that a decoder reads first.
        end_token: Its token that ends a text.

    Raises:
        TypeError: `tokenizer` is none.
        ValueError: the tokenizer has no such special token; the message lists those that it has.

    Example:

    >>> from keras_llm import data
    >>> tokenizer = data.train_tokenizer(["low lower lowest"], vocab_size=300)
    >>> ids = tokenizer.encode("slow ✓")
    >>> tokenizer.decode(ids), tokenizer.decode([tokenizer.start_id, *ids, tokenizer.end_id])
    ('slow ✓', 'slow ✓')
    >>> int(tokenizer.token_bytes[ids].sum()) == len("slow ✓".encode())
    True
    """

    write_instead = TOKEN_NAMES

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        pad_token: str | None = PAD,
        start_token: str = START,
        end_token: str = END,
    ):
        if not isinstance(tokenizer, tokenizers.Tokenizer):
            raise TypeError(
                "tokenizer must be a tokenizers.Tokenizer; data.load_tokenizer reads one from its "
                f"file. Received: a {type(tokenizer).__name__}"
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Despite its name, True means that the spelling of a special token is encoded as any text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.pad_id = None if pad_token is None else self._special_id("pad_token", pad_token)
        self.start_id = self._special_id("start_token", start_token)
        self.end_id = self._special_id("end_token", end_token)

    def _special_id(self, argument: str, token: str) -> int:
        added = self._tokenizer.get_added_tokens_decoder()
        special = {each.content: i for i, each in added.items() if each.special}
        if token not in special:
            raise ValueError(
                f"{argument} must be one of the tokenizer's special tokens, {list(special)}. "
                f"Received: {argument}={token!r}"
            )
        return special[token]

    @functools.cached_property
    def vocab_size(self) -> int:
        """The number of ids: the largest id + 1; a `ValueError` for one that int32 cannot hold."""
        largest = max(self._tokenizer.get_vocab().values())
        if largest >= MOST_IDS:
            raise ValueError(f"tokenizer must have ids below 2^31. Received: id {largest}")
        return largest + 1

    @names_elsewhere(NO_SPECIAL_IDS)
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special ones.

        Raises:
            TypeError: `text` is not a string.
            ValueError: it has an unknown word, and the tokenizer no token for those, or it is not
                valid Unicode.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string. Received: text={text!r}")
        check_unicode(text, "text")
        return self._encoded(self._tokenizer.encode, text).ids

    @staticmethod
    def _encoded(encode, text):
        try:
            return encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(
                f"text must be what the tokenizer can encode: {error}. Received: {text!r:.80}"
            ) from error

    def encode_each(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of every text: as `encode`, on all cores."""
        texts = valid_texts(texts, "texts")
        while some := list(itertools.islice(texts, TEXTS_PER_CALL)):
            for encoding in self._encoded(self._tokenizer.encode_batch_fast, some):
                yield encoding.ids

    def encode_with_ends(self, texts: Iterable[str]) -> Iterator[tuple[list[int], list[int]]]:
        """The ids of every text, and the number of its characters up to the end of each token."""
        texts = valid_texts(texts, "texts")
        while some := list(itertools.islice(texts, TEXTS_PER_CALL)):
            for encoding in self._encoded(self._tokenizer.encode_batch, some):
                yield encoding.ids, [end for _, end in encoding.offsets]

    @names_elsewhere(NO_SPECIAL_IDS)
    def decode(self, ids) -> str:
        """The text of one row of ids; special ids are left out.

        Args:
            ids: A list, a numpy array or a tensor of integers, `[length]`.

        Raises:
            TypeError: `ids` are not integers.
            ValueError: `ids` is not of rank 1, or holds an id outside the vocabulary.
        """
        if isinstance(ids, list | tuple):
            is_row = not any(np.shape(item) for item in ids)
        else:
            ids = keras.ops.convert_to_numpy(ids)
            is_row = ids.ndim == 1
        if not is_row:
            raise ValueError(
                "ids must be one row, of shape [length]; for several rows write "
                f"[tokenizer.decode(row) for row in rows]. Received: ids={str(ids)[:80]}"
            )
        ids = np.asarray(ids) if len(ids) else np.empty(0, np.int64)
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"ids must be integers. Received: ids={str(ids)[:80]}")
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise ValueError(
                f"ids must be in [0, {self.vocab_size}), the vocabulary. Received: {outside[0]}"
            )
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def spelled(self, ids: list[int]) -> str:
        """The text of one row of ids, special ones included."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """How many UTF-8 bytes of text each id stands for, `[vocab_size]`; 0 for special ids.

        For `metrics.BitsPerByte(token_bytes=...)`. The sum over an encoded text is the number of
        its bytes, if no part of it is unknown; for words, without the spaces between them.

        Raises:
            ValueError: the tokenizer is neither byte-level nor word-level.
        """
        if isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            size = len  # a byte-level token spells each byte as one character
        elif isinstance(self._tokenizer.model, models.WordLevel):
            size = _utf8_size
        else:
            raise ValueError(
                "token_bytes is known for byte-level and word-level tokenizers. "
                f"Received: a tokenizer with the model {self._tokenizer.model}"
            )
        token_bytes = np.zeros(self.vocab_size, np.int64)
        for token, i in self._tokenizer.get_vocab().items():
            token_bytes[i] = size(token)
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            token_bytes[i] = 0 if token.special else _utf8_size(token.content)
        return token_bytes

    def definition(self) -> str:
        """All that encoding depends on, as JSON: what `save` writes."""
        return self._tokenizer.to_str()

    @by_first_process
    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON file of the `tokenizers` library, which `load_tokenizer` reads."""
        Path(path).write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @by_first_process
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the tokenizer as Hugging Face's folders have it: `tokenizer.json`,
        `tokenizer_config.json` and `special_tokens_map.json`.

        `transformers.AutoTokenizer.from_pretrained(folder)` encodes as `encode` does. It does not
        look for special tokens in a text either; pass it `split_special_tokens=False` where a chat
        template writes them.

        Args:
            folder: Where to. It is made if it is missing; files of the same names are replaced.
        """
        ids = {"bos_token": self.start_id, "eos_token": self.end_id, "pad_token": self.pad_id}
        tokens = {name: self._tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
        with replaced_files(folder) as new:
            write_tokenizer(new, self._tokenizer, tokens)

    @classmethod
    @names_elsewhere({"pretrained_model_name_or_path": "folder"})
    def from_pretrained(cls, folder: str | os.PathLike) -> Self:
        """Reads the tokenizer of a Hugging Face folder that has a `tokenizer.json`.

        `bos_token`, `eos_token` and `pad_token` are its start, end and padding. Without a
        `bos_token` the start is the end. A `pad_token` that is the `eos_token` is no padding:
        `pad_id` is then None, and labels of padding are -100. A chat template is not read.

        Raises:
            FileNotFoundError: `tokenizer.json` or `tokenizer_config.json` is missing.
            ValueError: there is no `eos_token`, or a file is damaged.

        Example:

        >>> import tempfile
        >>> from keras_llm import data
        >>> data.train_tokenizer(["a b"], unit="word").save_pretrained(folder := tempfile.mkdtemp())
        >>> data.Tokenizer.from_pretrained(folder).encode("b a")
        [5, 4]
        """
        tokenizer = read_tokenizer(Path(folder, TOKENIZER))
        return cls(tokenizer, **special_tokens(Path(folder)))


def _utf8_size(text: str) -> int:
    return len(text.encode("utf-8"))
