"""What `tokens` reads: files, rows of data sets and iterables, a piece at a time."""

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_llm.data.corpus import iterate_rows
from keras_llm.data.instruction_rows import json_lines
from keras_llm.data.text_files import file_documents, not_utf8, separator_pattern
from keras_llm.data.token_chunks import Chunk, id_chunks, text_chunks

JSON_LINES, PARQUET, IDS = {".jsonl", ".ndjson", ".json"}, {".parquet"}, {".bin"}
ROWS_PER_READ = 1000
FIELD = "text"


class TokenSource:
    """A source of texts, or of ids that are in files already.

    Args:
        source, field, sample_by, separator: As in `tokens`.

    Attributes:
        is_ids: Whether it holds ids.
        options: The arguments that decide what a document is.
        identity: Values that change when the files do; None if only reading tells.
        num_bytes: The size of text files and of ids; None if it is not known.
    """

    def __init__(self, source, field: str | None, sample_by: str, separator: str | None):
        self.pattern = separator_pattern(sample_by, separator)
        self.paths = paths = file_paths(source)
        suffixes = {path.suffix.lower() for path in paths}
        tables = suffixes & (JSON_LINES | PARQUET)
        self.is_ids = bool(suffixes & IDS)
        if self.is_ids and not suffixes <= IDS:
            raise ValueError(f"source must be either .bin files or texts. Received: {source!r}")
        is_text = bool(suffixes - JSON_LINES - PARQUET - IDS)
        if field is not None and paths and not tables:
            raise ValueError(
                "field must be None for files other than JSON lines and Parquet. "
                f"Received: field={field!r}"
            )
        if (sample_by, separator) != ("paragraph", None) and not is_text:
            raise ValueError(
                "sample_by and separator are for text files. "
                f"Received: sample_by={sample_by!r}, separator={separator!r}"
            )
        self.rows = None if paths else source
        self.field = FIELD if field is None else field
        self.options = {"field": self.field, "sample_by": sample_by, "separator": separator}
        stats = [(path.name, path.stat()) for path in paths]
        self.identity: Any = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        if not paths:
            is_data_set = hasattr(source, "select_columns")
            self.identity = getattr(source, "_fingerprint", None) if is_data_set else None
        sizes = sum(stat.st_size for _, stat in stats)
        self.num_bytes = sizes if paths and not tables else None

    def chunks(self, num_bytes: int, end_id: int) -> Iterator[Chunk]:
        """All of it, about so many bytes at a time."""
        if self.is_ids:
            return id_chunks(self.paths, num_bytes, end_id)
        return text_chunks(self._texts(), num_bytes)

    def _texts(self) -> Iterable[str]:
        if self.rows is not None:
            return row_texts(self.rows, self.field)
        return itertools.chain.from_iterable(map(self._of_file, self.paths))

    def _of_file(self, path: Path) -> Iterable[str]:
        if path.suffix.lower() in JSON_LINES:
            return json_texts(path, self.field)
        if path.suffix.lower() in PARQUET:
            return parquet_texts(path, self.field)
        return file_documents(path, self.pattern)


def file_paths(source) -> list[Path]:
    """The files that a path, a pattern or several paths name; none if it is something else.

    Raises:
        FileNotFoundError: a file is missing, or a pattern names none.
        TypeError: a list of strings names files: such a list is one of texts.
    """
    if isinstance(source, str | os.PathLike):
        source = os.fspath(source)
        is_pattern = glob.has_magic(source) and not os.path.exists(source)
        paths = sorted(glob.glob(source, recursive=True)) if is_pattern else [source]
        if not paths:
            raise FileNotFoundError(f"source names no file. Received: source={source!r}")
        paths = [Path(path) for path in paths]
    elif isinstance(source, list | tuple) and source and isinstance(source[0], os.PathLike):
        paths = [Path(path) for path in source]
    else:
        if isinstance(source, list | tuple) and source and isinstance(source[0], str):
            _check_no_path(source[0])
        return []
    for path in paths:
        if path.is_dir():
            raise ValueError(
                f"source must name files, as in '{path}/*.txt'. Received: the directory {path}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"source names a file that is missing: {path}")
    return paths


def _check_no_path(text):
    if len(text) < 1000 and "\n" not in text and (os.path.exists(text) or glob.glob(text)):
        raise TypeError(
            "A list of strings is one of texts. For several files write a pattern, such as "
            f"'data/*.txt', or a list of pathlib.Path. Received: the name of a file, {text!r}"
        )


def row_texts(rows: Iterable, field: str) -> Iterator[str]:
    """The texts of a split, of an iterable of strings, or of a field of dictionaries."""
    if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
        yield from itertools.chain(*iterate_rows(rows, "source"))  # raises: these are no rows
    if hasattr(rows, "select_columns"):  # a data set of `datasets`
        names = rows.column_names
        if names is not None and field not in names:
            raise ValueError(f"field must be one of {list(names)}. Received: field={field!r}")
        batches = rows.with_format(None).select_columns([field]).iter(ROWS_PER_READ)
        rows = ({field: text} for batch in batches for text in batch[field])
    else:
        rows = iter(rows)
        first = list(itertools.islice(rows, 1))
        rows = itertools.chain(first, rows)
        if not first or not isinstance(first[0], Mapping):
            yield from ("\n".join(row) for row in iterate_rows(rows, "source"))
            return
    yield from field_of_each(rows, field, "source")


def field_of_each(rows: Iterable[Mapping], field: str, where) -> Iterator[str]:
    """A field of every row, which must be a string."""
    for position, row in enumerate(rows):
        text = row.get(field) if isinstance(row, Mapping) else None
        if not isinstance(text, str):
            found = f"{field}={text!r:.80}" if isinstance(row, Mapping) else repr(row)[:80]
            if isinstance(row, Mapping) and field not in row:
                found = f"the fields {list(row)}"
            raise ValueError(
                f"Every row must have a string in its field {field!r}; field=... names another. "
                f"Received: {found} in row {position} of {where}"
            )
        yield text


def json_texts(path: Path, field: str) -> Iterator[str]:
    """A field of the objects of a JSON lines file."""
    try:
        yield from field_of_each(json_lines(path, "source"), field, path)
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error


def parquet_texts(path: Path, field: str) -> Iterator[str]:
    """A column of a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"Parquet files need pyarrow: pip install pyarrow. Received: {path}"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise ValueError(
                    f"field must be one of {names}, the columns of {path}. "
                    f"Received: field={field!r}"
                )
            batches = file.iter_batches(batch_size=ROWS_PER_READ, columns=[field])
            rows = ({field: text} for batch in batches for text in batch.column(0).to_pylist())
            yield from field_of_each(rows, field, path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from error
