"""The documents of UTF-8 text files, read a part at a time: a file may be larger than memory."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import TextIO

from keras_llm.arguments import check_one_of

SEPARATORS = {"paragraph": r"\n\s*\n", "line": r"\n", "file": None}
CHARACTERS_PER_READ = 2**20


def separator_pattern(sample_by: str, separator: str | None) -> str | None:
    """The regular expression between documents; None where a file is one document.

    Raises:
        ValueError: `sample_by` is unknown, or `separator` is empty or stands beside it.
    """
    check_one_of(sample_by, "sample_by", SEPARATORS)
    if separator is None:
        return SEPARATORS[sample_by]
    if sample_by != "paragraph" or not separator or not isinstance(separator, str):
        raise ValueError(
            "separator must be a string that is not empty, without sample_by. "
            f"Received: separator={separator!r}, sample_by={sample_by!r}"
        )
    return re.escape(separator)


def file_documents(path: str | os.PathLike, pattern: str | None) -> Iterator[str]:
    """The documents of a file that are not blank, without line breaks around them.

    Raises:
        ValueError: the file is not UTF-8.
    """
    # Some editors write a byte order mark, which is not text.
    with open(path, encoding="utf-8-sig") as file:
        try:
            yield from not_blank([file.read()] if pattern is None else split_stream(file, pattern))
        except UnicodeDecodeError as error:
            raise not_utf8(path) from error


def not_utf8(path: str | os.PathLike) -> ValueError:
    """The error for a file that is not UTF-8: it names the first byte that cannot be read."""
    return ValueError(
        f"The file must be UTF-8 text. Received: {path}, {_first_bad_byte(path)}. Convert the file "
        "first."
    )


def not_blank(documents: Iterable[str]) -> Iterator[str]:
    """The documents that are not blank, without line breaks around them."""
    return (document.strip("\n") for document in documents if document.strip())


def split_stream(
    file: TextIO, pattern: str, characters: int = CHARACTERS_PER_READ
) -> Iterator[str]:
    r"""What `re.split(pattern, file.read())` gives, with one document in memory at a time.

    The pattern is that of a paragraph or a line, or a fixed string. White space at the end of what
    was read may go on in what was not, so the text is split up to there only.

    Example:

    >>> import io
    >>> list(split_stream(io.StringIO("one\n\n \n\ntwo\nlines"), r"\n\s*\n", characters=5))
    ['one', 'two\nlines']
    """
    rest = ""
    while more := file.read(max(characters, len(rest))):
        rest += more
        whole = rest.rstrip()
        *documents, last = re.split(pattern, whole)
        yield from documents
        rest = last + rest[len(whole) :]
    yield from re.split(pattern, rest)


def _first_bad_byte(path) -> str:
    offset = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                place = f"byte {offset + error.start} is {line[error.start]:#04x}"
                return f"whose {place}: {error.reason}"
            offset += len(line)
    return "which changed while it was read"
