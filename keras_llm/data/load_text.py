"""A corpus from your own text files."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from keras_llm.arguments import check_number
from keras_llm.data.corpus import Corpus
from keras_llm.data.text_files import file_documents, not_blank, separator_pattern
from keras_llm.names_elsewhere import names_elsewhere

# A line of more characters may be cut where a text begins.
LONG_LINE = 1_000


@names_elsewhere(
    {
        "validation_split": "validation=...",
        "val_split": "validation=...",
        "valid": "validation=...",
        "test_split": "test=...",
        "test_size": "test=...",
        "train_size": "validation=... and test=...; the rest is to train on",
        "delimiter": "separator=...",
        "split_by": "sample_by=... or separator=...",
        "encoding": "nothing: a file must be UTF-8",
        "data_files": "the paths as the first argument",
    }
)
def load_text(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    sample_by: str = "paragraph",
    *,
    separator: str | None = None,
    validation: float = 0.05,
    test: float = 0.05,
) -> Corpus:
    """Your own UTF-8 text as a corpus: the first 90% to train on, then 5% and 5% held out.

    The splits are contiguous and in the files' order: neighbouring paragraphs resemble each other,
    so a model would do too well on held-out ones that were drawn from between the others.

    With `sample_by="file"`, where files may be few and long, they are measured in characters: a
    file that lies in two splits is cut at the end of a line (of a word, if it is one long line).
    Otherwise the splits are measured in documents.

    Args:
        path: A text file, or several, which are read one after another.
        sample_by: What a document is: `"paragraph"` (separated by blank lines), `"line"` or
            `"file"`, such as a play or a chapter.
        separator: A string of your own between documents, such as `"<|endoftext|>"`, in place of
            `sample_by`.
        validation: The fraction to validate on, between 0 and 1.
        test: The fraction to test on, between 0 and 1.

    Returns:
        A dictionary of the splits `"train"`, `"validation"` and `"test"`, each a list of strings,
        the documents. Every document is in exactly one split (but for files that are cut), and no
        split is empty.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `path` is no path.
        ValueError: a file is not UTF-8, or contains too little to split, or an argument is out of
            its range.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "my.txt")
    >>> _ = path.write_text("First line\\nof it.\\n\\nSecond.\\n\\n\\nThird.\\n")
    >>> load_text(path)
    {'train': ['First line\\nof it.'], 'validation': ['Second.'], 'test': ['Third.']}
    """
    pattern = separator_pattern(sample_by, separator)
    check_number(validation, "validation", "(0, 1)")
    check_number(test, "test", "(0, 1)")
    if validation + test >= 1:
        raise ValueError(
            "validation and test must leave something to train on. "
            f"Received: validation={validation}, test={test}"
        )
    paths = [path] if isinstance(path, str | os.PathLike) else path
    if not isinstance(paths, Iterable) or not all(isinstance(p, str | os.PathLike) for p in paths):
        raise TypeError(f"path must be the path of a file, or several. Received: path={path!r}")
    documents = [text for each in paths for text in file_documents(Path(each), pattern)]
    split = _split_characters if sample_by == "file" else _split_documents
    splits = split(documents, validation, test)
    if not all(splits):
        kind = f"separator={separator!r}" if separator else f"sample_by={sample_by!r}"
        raise ValueError(
            "There must be at least 3 documents, one for each split. Received: "
            f"{len(documents)} in {[str(each) for each in paths]} with {kind}. A paragraph ends at "
            "a blank line; sample_by='line' makes each line a document, and sample_by='file' cuts "
            "even a single file into three splits."
        )
    return Corpus(zip(("train", "validation", "test"), splits, strict=True))


def _split_documents(documents, validation, test):
    if len(documents) < 3:
        return [documents, [], []]
    held_out = [max(1, round(fraction * len(documents))) for fraction in (validation, test)]
    train_end = max(1, len(documents) - sum(held_out))
    test_start = min(train_end + held_out[0], len(documents) - 1)
    return documents[:train_end], documents[train_end:test_start], documents[test_start:]


def _split_characters(documents, validation, test):
    size = sum(map(len, documents))
    train, held_out = _cut(documents, round((1 - validation - test) * size))
    return train, *_cut(held_out, sum(map(len, held_out)) - round(test * size))


def _cut(documents, size):
    """The documents up to about `size` characters, and the rest."""
    for position, document in enumerate(documents):
        if size < len(document):
            # After a line, or a word, that ends within the size; else anywhere. In the first line
            # of a text, before it: the text before has ended.
            lines, words = (document.rfind(mark, 0, size) + 1 for mark in "\n ")
            is_first_line = position > 0 and size < LONG_LINE
            end = lines or (0 if is_first_line else words or size)
            before = [*documents[:position], document[:end]]
            after = [document[end:], *documents[position + 1 :]]
            return list(not_blank(before)), list(not_blank(after))
        size -= len(document)
    return documents, []
