"""Texts larger than memory: encoded once, into files that batches are read from."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from keras_llm.arguments import check_positive_int
from keras_llm.data.hugging_face_tokenizer import as_tokenizer
from keras_llm.data.token_chunks import Chunk
from keras_llm.data.token_encoder import id_reader, text_encoder
from keras_llm.data.token_manifest import MANIFEST, Manifest, differences
from keras_llm.data.token_shards import TokenShards
from keras_llm.data.token_sources import TokenSource
from keras_llm.data.token_writer import TextChangedError, write_shards
from keras_llm.data.tokenizer import Tokenizer
from keras_llm.data.tokenizer_fingerprint import tokenizer_fingerprint
from keras_llm.distribution import world
from keras_llm.folder_lock import FolderLock
from keras_llm.names_elsewhere import names_elsewhere
from keras_llm.synced_file import sync_folder

SHARD_BYTES = 2**26
CHUNK_BYTES = 2**20
WAY_OUT = "Give another directory, or overwrite=True to encode anew."


@names_elsewhere(
    {
        "path": "the text as the first argument",
        "files": "them as the first argument",
        "column": "field=...",
        "text_column": "field=...",
        "text_field": "field=...",
        "output_dir": "directory=...",
        "cache_dir": "directory=...",
        "num_proc": "nothing: all cores are used",
        "num_workers": "nothing: all cores are used",
        "split_by": "sample_by=... or separator=...",
        "shard_size": "shard_bytes=...",
    }
)
def tokens(
    source,
    tokenizer: Tokenizer,
    directory: str | os.PathLike,
    *,
    field: str | None = None,
    sample_by: str = "paragraph",
    separator: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    verify: bool = False,
    verbose: int = 1,
) -> TokenShards:
    """Encodes texts of any size once, into a directory that `causal_lm` reads.

    The first call encodes, on all cores, and writes shards. A call with the same arguments later
    finds them and encodes nothing; if the first one was stopped, at any instant, it goes on with
    the first shard that is missing. Memory does not grow with the text; a single document has to
    fit into it.

    Every text is followed by `tokenizer.end_id`, as in `causal_lm`.

    - Another tokenizer, text or option than the directory was made with is an error that names
      what has changed. Text files count as the same if their names, sizes and times of change are.
      Otherwise, and for an iterable always, all the text is read and compared by hashes, without
      encoding it.
    - A shard that is missing, or of the wrong size, is encoded again, with a warning.
    - Two processes cannot write to one directory: the second one gets an error.

    Args:
        source: One of

            - text files, JSON lines (`.jsonl`, `.ndjson`, `.json`) or Parquet files (needs
              pyarrow): a path, a pattern such as `"books/**/*.txt"`, or a list of `pathlib.Path`;
            - a split of a corpus, or of the `datasets` library, streamed or not;
            - an iterable of strings, or of dictionaries, which gives the same each time;
            - nanoGPT's `.bin` files, whose ids of two bytes are checked and copied.
        tokenizer: What encodes: one of ours, or of transformers. For `.bin` files, the one that
            made them.
        directory: Where to: `manifest.json`, and for each shard its ids (little-endian uint16, or
            uint32 where the vocabulary needs it) and the offsets (int64) of its documents.
        field: The field of JSON lines, Parquet and data sets; None is `"text"`.
        sample_by, separator: What a document is in text files, as in `load_text`.
        shard_bytes: About how many bytes of text make a shard: what is lost when it is stopped.
        overwrite: Whether to encode anew if the directory holds tokens already.
        verify: Whether to compare the shards' files with their hashes; by default, their sizes.
        verbose: 1 for a progress bar, 0 for none.

    Returns:
        The tokens, for `causal_lm`, which takes the directory too.

    Raises:
        ValueError: the directory holds other tokens, the source is empty or a part of it is no
            text, or an id of padding is in it.
        FileNotFoundError: a file is missing.
        FolderInUseError: another process writes to the directory.

    Example:

    >>> import pathlib, tempfile
    >>> from keras_llm import data
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "my.txt").write_text("b a b\\n\\na a\\n")
    >>> tokenizer = data.train_tokenizer(["b a b", "a a"], unit="word")
    >>> tokens = data.tokens(folder / "my.txt", tokenizer, folder / "tokens", verbose=0)
    >>> len(tokens), tokens.num_tokens
    (2, 7)
    >>> ids, labels = next(iter(data.causal_lm(tokens, seq_len=3, batch_size=2)))
    >>> ids.tolist()
    [[5, 4, 5], [2, 4, 4]]
    """
    shard_bytes = check_positive_int(shard_bytes, "shard_bytes")
    tokenizer = as_tokenizer(tokenizer)
    texts = TokenSource(source, field, sample_by, separator)
    wanted = Manifest(
        tokenizer_fingerprint(tokenizer),
        {**texts.options, "shard_bytes": shard_bytes},
        texts.identity,
    )
    directory, processes = Path(directory), world()
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.first_alone(f"tokens {directory}"))
        if not processes.is_first:
            # The first process has just made them, where the disk is the same.
            overwrite, verbose = False, 0
            if (found := _read_same(directory, wanted)) is not None and found.complete:
                return TokenShards(directory)
        if not overwrite and is_up_to_date(directory, wanted, verify):
            return TokenShards(directory)
        directory.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FolderLock(directory / ".lock", "tokens"))
        if overwrite:
            _remove_tokens(directory)
        manifest = _read_same(directory, wanted) or wanted
        chunks = texts.chunks(min(shard_bytes, CHUNK_BYTES), tokenizer.end_id)
        encoder = id_reader(tokenizer) if texts.is_ids else text_encoder(tokenizer)
        with encoder as encode, _counted(chunks, texts.num_bytes, verbose) as counted:
            try:
                write_shards(directory, manifest, counted, encode, verify)
            except TextChangedError as error:
                changes = differences(_by_name(manifest.source), _by_name(texts.identity))
                raise ValueError(
                    f"The text is not the one that {directory} was made of: {error}. "
                    f"Changed: {changes or 'only what is read'}. {WAY_OUT}"
                ) from None
        manifest.complete, manifest.source = True, texts.identity
        manifest.write(directory)
    return TokenShards(directory)


def is_up_to_date(directory: Path, wanted: Manifest, verify: bool) -> bool:
    """Whether the directory holds all of what is wanted, so far as that is known without reading.

    Raises:
        ValueError: it holds tokens of another tokenizer, or with other options.
    """
    found = _read_same(directory, wanted)
    return (
        found is not None
        and found.complete
        and wanted.source is not None
        and found.source == wanted.source
        and not any(found.damage(directory, i, verify) for i in range(len(found.shards)))
    )


def _read_same(directory: Path, wanted: Manifest) -> Manifest | None:
    try:
        found = Manifest.read(directory)
    except FileNotFoundError:
        return None
    changes = differences(found.options, wanted.options)
    if found.tokenizer != wanted.tokenizer:
        changes = f"the tokenizer: {differences(found.tokenizer, wanted.tokenizer)}"
    if changes:
        raise ValueError(f"{directory} was made with other arguments: {changes}. {WAY_OUT}")
    return found


def _by_name(source) -> dict:
    """What is known of each file, or of the whole source."""
    if not isinstance(source, list):
        return {"source": source}
    return {name: f"{size:,} bytes, changed at {time}" for name, size, time in source}


def _remove_tokens(directory: Path) -> None:
    """Removes the manifest first: shards without one are of no one."""
    (directory / MANIFEST).unlink(missing_ok=True)
    sync_folder(directory)
    for path in directory.iterdir():
        if re.fullmatch(r"shard_\d{5,}\.(ids|offsets)", path.name):
            path.unlink()


@contextlib.contextmanager
def _counted(chunks: Iterable[Chunk], num_bytes: int | None, verbose: int) -> Iterator[Iterator]:
    """Context manager: the chunks, which a progress bar counts as they are taken."""
    from rich import progress

    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    ]

    def counted():
        for chunk in chunks:
            yield chunk
            bar.advance(task, chunk.size)
        # Separators and line ends of a file are in no document.
        bar.update(task, completed=num_bytes)

    with progress.Progress(*columns, disable=not verbose) as bar:
        task = bar.add_task("tokens", total=num_bytes)
        yield counted()
