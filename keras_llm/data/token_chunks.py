"""Pieces of texts, or of ids, of which few are in memory at a time."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_llm.data.unicode_text import check_unicode

# The first bytes of another format of the same suffix, that of llm.c: it has a header.
LLM_C = (20240520).to_bytes(4, "little")


class Chunk(NamedTuple):
    """Some documents, or ids.

    Attributes:
        rows: The texts, or the ids.
        content: Bytes by which a change of them is noticed.
        size: How many bytes of the source they are.
    """

    rows: list[str] | np.ndarray
    content: bytes
    size: int


def text_chunks(texts: Iterable[str], num_bytes: int) -> Iterator[Chunk]:
    """Lists of texts; the content is each text's length and its UTF-8 bytes."""
    rows: list[str] = []
    parts: list[bytes] = []
    size = 0
    for position, text in enumerate(texts):
        content = check_unicode(text, f"document {position} of source")
        rows.append(text)
        parts += [len(content).to_bytes(8, "little"), content]
        size += len(content)
        if size >= num_bytes:
            yield Chunk(rows, b"".join(parts), size)
            rows, parts, size = [], [], 0
    if rows:
        yield Chunk(rows, b"".join(parts), size)


def id_chunks(paths: list[Path], num_bytes: int, end_id: int) -> Iterator[Chunk]:
    """Arrays of the ids in files of two bytes an id, which end with the end of a document.

    A stretch that is longer than a chunk is cut.
    """
    for path in paths:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size % 2 or file.read(4) == LLM_C:
                raise ValueError(
                    "A .bin file must hold ids of two bytes, little-endian, and no header, as "
                    f"nanoGPT writes it. Received: {path} of {size:,} bytes"
                )
            file.seek(0)
            rest = np.empty(0, "<u2")
            while len(more := np.frombuffer(file.read(num_bytes + num_bytes % 2), "<u2")):
                ids = np.concatenate([rest, more])
                ends = np.flatnonzero(ids == end_id)
                cut = ends[-1] + 1 if len(ends) else len(ids)
                rest = ids[cut:]
                yield Chunk(ids[:cut], ids[:cut].tobytes(), ids[:cut].nbytes)
            if len(rest):
                yield Chunk(rest, rest.tobytes(), rest.nbytes)
