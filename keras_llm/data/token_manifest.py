"""`manifest.json`: what a directory of token shards holds, and of what it was made."""

import dataclasses
import hashlib
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_llm.data.token_array import id_dtype
from keras_llm.synced_file import synced_file

MANIFEST = "manifest.json"
FORMAT, VERSION = "keras_llm tokens", 1
OFFSET_DTYPE = np.dtype("<i8")
# How many of the things that differ an error names.
NAMED = 8
REMEDY = "Run data.tokens again with overwrite=True, or with another directory."


class Shard(NamedTuple):
    """What one shard holds; each `sha256` is that of a file's bytes, or of the texts."""

    tokens: int
    documents: int
    ids_sha256: str
    offsets_sha256: str
    text_sha256: str


@dataclasses.dataclass
class Manifest:
    """The content of `manifest.json`.

    The names of files are those that `shard_files` gives: none is taken from the manifest.

    Attributes:
        tokenizer: What `tokenizer_fingerprint` returned.
        options: The arguments that decide what a document is, and how many make a shard.
        source: Files, their sizes and times of change; or None, where only reading tells.
        shards: The shards that are whole, in their order.
        complete: Whether the source ended with the last of them.
    """

    tokenizer: dict[str, Any]
    options: dict[str, Any]
    source: Any
    shards: list[Shard] = dataclasses.field(default_factory=list)
    complete: bool = False

    @property
    def dtype(self) -> np.dtype:
        """The type of ids in the files, little-endian."""
        return id_dtype(self.tokenizer["vocab_size"]).newbyteorder("<")

    def files(self, index: int) -> dict[str, tuple[int, str]]:
        """The size in bytes and the SHA-256 of both files of a shard, by their names."""
        shard = self.shards[index]
        sizes = shard.tokens * self.dtype.itemsize, (shard.documents + 1) * OFFSET_DTYPE.itemsize
        hashes = shard.ids_sha256, shard.offsets_sha256
        return dict(zip(shard_files(index), zip(sizes, hashes, strict=True), strict=True))

    def damage(self, folder: Path, index: int, verify: bool) -> str | None:
        """What is wrong with the files of a shard, or None; `verify` reads them."""
        for name, (size, sha256) in self.files(index).items():
            path = folder / name
            if path.is_symlink():
                return f"{path} is a link; shards must be files of their directory"
            if not path.is_file():
                return f"{path} is missing"
            if (found := path.stat().st_size) != size:
                return f"{path} must have {size:,} bytes and has {found:,}"
            if verify and file_sha256(path) != sha256:
                return f"{path} is damaged: its SHA-256 is not that of {MANIFEST}"
        return None

    def write(self, folder: Path) -> None:
        """Replaces the manifest of a folder."""
        shards = [
            {
                "files": {
                    name: {"bytes": size, "sha256": sha256}
                    for name, (size, sha256) in self.files(index).items()
                },
                "tokens": shard.tokens,
                "documents": shard.documents,
                "text_sha256": shard.text_sha256,
            }
            for index, shard in enumerate(self.shards)
        ]
        content = {
            "format": FORMAT,
            "version": VERSION,
            "complete": self.complete,
            "dtype": self.dtype.name,
            "tokens": sum(shard.tokens for shard in self.shards),
            "documents": sum(shard.documents for shard in self.shards),
            "tokenizer": self.tokenizer,
            "options": self.options,
            "source": self.source,
            "shards": shards,
        }
        content["sha256"] = _content_hash(content)
        with synced_file(folder / MANIFEST) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, is none of token shards, or names a file elsewhere.
        """
        path = folder / MANIFEST
        if path.is_symlink():
            raise ValueError(f"{path} must be a file, not a link.")
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"directory must be one that data.tokens wrote: {path} is missing."
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: it is not JSON. {REMEDY}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{path} must be one that data.tokens wrote, of format {FORMAT!r}.")
        if content.get("version") != VERSION:
            raise ValueError(
                f"{path} must be of version {VERSION}, which this keras_llm reads. "
                f"Received: version {content.get('version')!r}"
            )
        try:
            whole = content.pop("sha256", None) == _content_hash(content)
            manifest = cls._checked(content) if whole else None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not as data.tokens writes it: {error!r}") from error
        if manifest is None:
            raise ValueError(f"{path} is damaged: its SHA-256 is not that of the rest. {REMEDY}")
        return manifest

    @classmethod
    def _checked(cls, content) -> "Manifest":
        """From what JSON held, of which nothing is taken for granted."""
        tokenizer = content["tokenizer"]
        for name in ("vocab_size", "end_id"):
            _count(tokenizer[name])
        if tokenizer["pad_id"] is not None:
            _count(tokenizer["pad_id"])
        _require(isinstance(content["options"], dict), "options")
        _require(isinstance(content["complete"], bool), "complete")
        source, shards = content["source"], []
        if isinstance(source, list):
            for name, size, time in source:
                types = [type(each) for each in (name, size, time)]
                _require(types == [str, int, int], f"source has {types}")
        else:
            _require(source is None or isinstance(source, str), "source")
        complete = content["complete"]
        _require(isinstance(content["shards"], list), "shards")
        _require(bool(content["shards"]) or not complete, "there is no shard")
        for shard in content["shards"]:
            ids, offsets = shard_files(len(shards))
            _require(set(shard["files"]) == {ids, offsets}, f"files are {list(shard['files'])}")
            hashes = [shard["files"][name]["sha256"] for name in (ids, offsets)]
            _require(all(map(_is_sha256, [*hashes, shard["text_sha256"]])), "sha256")
            counts = _count(shard["tokens"]), _count(shard["documents"])
            _require(all(counts), "a shard is empty")
            shards.append(Shard(*counts, *hashes, shard["text_sha256"]))
        return cls(tokenizer, content["options"], source, shards, complete)


def shard_files(index: int) -> tuple[str, str]:
    """The names of a shard's files: its ids, and the offsets of its documents."""
    return f"shard_{index:05}.ids", f"shard_{index:05}.offsets"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two dictionaries, in words; empty if nothing does.

    >>> differences({"vocab_size": 300, "end_id": 2}, {"vocab_size": 400, "end_id": 2})
    'vocab_size was 300 and is 400'
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    words = [
        f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in names[:NAMED]
    ]
    return ", ".join(words + [f"and {len(names) - NAMED} more"] * (len(names) > NAMED))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:10]}...{text[-3:]}"


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _count(value):
    _require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, f"{value!r}")
    return value


def _is_sha256(value) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set(string.hexdigits)


def _require(condition, what: str):
    if not condition:
        raise ValueError(what)
