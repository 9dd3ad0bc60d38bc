"""The tokens of a directory that `tokens` wrote, read from its files as they are asked for."""

import functools
import os
from bisect import bisect_right
from pathlib import Path

import numpy as np

from keras_llm.data.token_array import hash_of, padding
from keras_llm.data.token_manifest import OFFSET_DTYPE, REMEDY, Manifest, shard_files

# A system allows a process about 1,000 open files.
OPEN_FILES = 256


class TokenShards:
    """Encoded texts in files: what `tokens` returns and `causal_lm` reads.

    Opening reads the manifest and looks at the files' sizes. Ids are mapped into memory when they
    are first read, so that the system keeps in memory what it has room for.

    `len` is the number of texts. Nothing in the files is executed, and files outside of the
    directory are not read.

    Args:
        directory: What was given to `tokens`.
        verify: Whether to compare all files with their hashes, which reads them once.

    Attributes:
        num_tokens: The number of ids, with the `end_id` after each text.
        vocab_size, end_id, pad_id: Those of the tokenizer.

    Raises:
        FileNotFoundError: the directory, its manifest or a shard is missing.
        ValueError: a file is damaged, or not all of the text was encoded yet.

    Example:

    >>> import tempfile
    >>> from keras_llm import data
    >>> texts, folder = ["b a b", "a a"], tempfile.mkdtemp()
    >>> tokenizer = data.train_tokenizer(texts, unit="word")
    >>> _ = data.tokens(texts, tokenizer, folder, verbose=0)
    >>> tokens = data.TokenShards(folder, verify=True)
    >>> len(tokens), tokens.num_tokens, tokens.vocab_size
    (2, 7, 6)
    """

    def __init__(self, directory: str | os.PathLike, verify: bool = False):
        self.directory = Path(directory).absolute()
        self._manifest = manifest = Manifest.read(self.directory)
        if not manifest.complete:
            raise ValueError(
                f"{self.directory} holds {len(manifest.shards)} shards and not all of the text: "
                "call data.tokens as before, and it goes on."
            )
        for index in range(len(manifest.shards)):
            if damage := manifest.damage(self.directory, index, verify):
                error = FileNotFoundError if damage.endswith("is missing") else ValueError
                raise error(f"{damage}. data.tokens, called as before, encodes it again.")
        sizes = [shard.tokens for shard in manifest.shards]
        # Python's integers: a bisection of a few of them is faster than NumPy's.
        self.parts = [0, *np.cumsum(sizes).tolist()]
        self.num_tokens = self.parts.pop()
        self.tokenizer = manifest.tokenizer
        self.vocab_size = self.tokenizer["vocab_size"]
        self.end_id, self.pad_id = self.tokenizer["end_id"], self.tokenizer["pad_id"]
        self._fill_id, self._fill_label = padding(self.pad_id, self.end_id)
        self._ids = functools.lru_cache(OPEN_FILES)(self._open_ids)
        self._offsets = functools.lru_cache(OPEN_FILES)(self._open_offsets)

    def __len__(self) -> int:
        return sum(shard.documents for shard in self._manifest.shards)

    def __repr__(self) -> str:
        name = str(self.directory)
        return f"TokenShards({name!r}, documents={len(self):,}, num_tokens={self.num_tokens:,})"

    def __reduce__(self):
        """A process that prepares batches opens the files itself."""
        return TokenShards, (self.directory,)

    def ids_and_labels(
        self, starts: np.ndarray, counts: np.ndarray, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of ids from each start on, and of the id after each of them, `[rows, length]`.

        Raises:
            ValueError: a file holds an id that is not in the vocabulary.
        """
        ids = np.full((len(starts), length), self._fill_id)
        labels = np.full((len(starts), length), self._fill_label)
        for row, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            read = self._read(start, count + 1)
            ids[row, :count], labels[row, :count] = read[:-1], read[1:]
        return ids, labels

    def part_offsets(self, part: int, check: bool = False) -> np.ndarray:
        """Where each text of a shard begins, counted from the shard's beginning, and its end.

        Raises:
            ValueError: `check`, and they do not increase to the shard's end.
        """
        offsets = self._offsets(part)
        tokens = self._manifest.shards[part].tokens
        if check and (offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 1).any()):
            raise ValueError(
                f"{self.directory / shard_files(part)[1]} is damaged: its numbers do not increase "
                f"from 0 to {tokens}. {REMEDY}"
            )
        return offsets

    def fingerprint(self) -> str:
        """A hash of the tokenizer and of the shards' hashes."""
        shards = [shard._replace(text_sha256="") for shard in self._manifest.shards]
        return hash_of(np.array([str(self.tokenizer), str(shards)]))

    def _read(self, start, count):
        """So many ids from a place on, which may be in several shards."""
        part = bisect_right(self.parts, start) - 1
        first = start - self.parts[part]
        read = [self._checked(part, first, count)]
        while (count := count - len(read[-1])) > 0:
            part += 1
            read.append(self._checked(part, 0, count))
        return read[0] if len(read) == 1 else np.concatenate(read)

    def _checked(self, part, first, count):
        ids = self._ids(part)[first : first + count]
        if (largest := ids.max()) >= self.vocab_size:
            raise ValueError(
                f"{self.directory / shard_files(part)[0]} is damaged: it holds the id {largest}, "
                f"and the vocabulary has {self.vocab_size}. data.tokens(..., "
                "verify=True) compares all files with their hashes."
            )
        return ids

    def _open_ids(self, part):
        return self._map(shard_files(part)[0], self._manifest.dtype)

    def _open_offsets(self, part):
        return self._map(shard_files(part)[1], OFFSET_DTYPE)

    def _map(self, name, dtype):
        # As a plain array: slices of a memmap are slower to make.
        return np.asarray(np.memmap(self.directory / name, dtype, mode="r"))
