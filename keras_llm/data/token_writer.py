"""The shards of a source, written one after another; those that are whole are left as they are."""

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from keras_llm.data.token_chunks import Chunk
from keras_llm.data.token_encoder import Encoded
from keras_llm.data.token_manifest import OFFSET_DTYPE, Manifest, Shard, shard_files
from keras_llm.synced_file import synced_file


class TextChangedError(Exception):
    """The source is another than the one that the shards were made of."""


def write_shards(
    folder: Path,
    manifest: Manifest,
    chunks: Iterable[Chunk],
    encode: Callable[[Iterator], Iterator[Encoded]],
    verify: bool,
) -> None:
    """Brings a folder, and its manifest, to what the source holds.

    A shard that the manifest has, and whose files are whole, is not encoded again; its text is
    compared by its hash. After each shard that is encoded, the manifest is written.

    Args:
        folder: Where to.
        manifest: What the folder holds so far.
        chunks: The whole source.
        encode: From pieces of the source to ids and the ends of documents.
        verify: Whether the files of shards are compared by their hashes, and not only by size.

    Raises:
        TextChangedError: the text of a shard is no longer the one it was made of.
        ValueError: the source is empty.
    """
    number = 0
    for number, group in enumerate(shard_groups(chunks, manifest.options["shard_bytes"]), 1):
        index, text = number - 1, hashlib.sha256()
        rows = _hashed(group, text)
        if index == len(manifest.shards):
            if manifest.complete:
                raise TextChangedError(f"there is more of it after shard {index - 1}, the last")
            manifest.shards.append(write_shard(folder, index, encode(rows), manifest.dtype, text))
            manifest.write(folder)
            continue
        before = manifest.shards[index].text_sha256
        if damage := manifest.damage(folder, index, verify):
            warnings.warn(f"{damage}. It is encoded again.", stacklevel=4)
            encoded = encode(rows)
            shard = write_shard(folder, index, encoded, manifest.dtype, text, before)
            manifest.shards[index] = shard
            manifest.write(folder)
        else:
            for _ in rows:
                pass
            _check_text(index, text, before)
    if number < len(manifest.shards):
        raise TextChangedError(f"it ends before shard {number} of {len(manifest.shards)}")
    if not number:
        raise ValueError("source must hold at least one text that is not blank.")


def shard_groups(chunks: Iterable[Chunk], num_bytes: int) -> Iterator[Iterator[Chunk]]:
    """The chunks of each shard: as many as it takes for so many bytes."""

    def numbered():
        number = size = 0
        for chunk in chunks:
            yield number, chunk
            size += len(chunk.content)
            if size >= num_bytes:
                number, size = number + 1, 0

    for _, group in itertools.groupby(numbered(), key=itemgetter(0)):
        yield map(itemgetter(1), group)


def write_shard(
    folder: Path, index: int, encoded: Iterable[Encoded], dtype: np.dtype, text, before=None
) -> Shard:
    """Writes the two files of a shard, and returns what the manifest keeps of it.

    Args:
        folder, index: Where, and which.
        encoded: Ids and the ends of documents among them, for each piece.
        dtype: The type of ids in the file.
        text: The hash of the texts, which grows while `encoded` is read.
        before: What it must be at the end; None for a new shard.
    """
    ids_name, offsets_name = shard_files(index)
    ids_hash = hashlib.sha256()
    offsets, tokens = [np.zeros(1, OFFSET_DTYPE)], 0
    with synced_file(folder / ids_name) as file:
        for ids, ends in encoded:
            content = np.ascontiguousarray(ids, dtype).data
            ids_hash.update(content)
            file.write(content)
            offsets.append(ends + tokens)
            tokens += len(ids)
        if before is not None:
            _check_text(index, text, before)
    content = np.concatenate(offsets).astype(OFFSET_DTYPE)
    with synced_file(folder / offsets_name) as file:
        file.write(content.data)
    offsets_hash = hashlib.sha256(content.data).hexdigest()
    documents = len(content) - 1
    return Shard(tokens, documents, ids_hash.hexdigest(), offsets_hash, text.hexdigest())


def _hashed(chunks, text):
    for chunk in chunks:
        text.update(chunk.content)
        yield chunk.rows


def _check_text(index, text, before):
    if text.hexdigest() != before:
        raise TextChangedError(f"its part that made shard {index} is another")
