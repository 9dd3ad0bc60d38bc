"""A corpus from your own text files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from keras_llm.data.corpus import Corpus

SEPARATORS = {"paragraph": r"\n\s*\n", "line": r"\n"}


def load_text(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    sample_by: str = "paragraph",
    *,
    validation: float = 0.05,
    test: float = 0.05,
) -> Corpus:
    """Your own UTF-8 text as a corpus: the first 90% to train on, then 5% and 5% held out.

    The splits are contiguous and in the file's order: neighbouring paragraphs resemble each other,
    so drawing the held-out ones from between the others would flatter the model.

    Args:
        path: A text file, or several, which are read one after another.
        sample_by: What a document is: `"paragraph"` (blank lines part them) or `"line"`.
        validation: The part of the documents, between 0 and 1, to validate on.
        test: The part of the documents, between 0 and 1, to test on.

    Returns:
        A dictionary of the splits `"train"`, `"validation"` and `"test"`, each a list of strings.
        Every document is in exactly one of them, and none of them is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is not UTF-8, or holds too few documents to split, or an argument is
            out of its range.

    Example:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "my.txt")
    >>> _ = path.write_text("First line\\nof it.\\n\\nSecond.\\n\\n\\nThird.\\n")
    >>> load_text(path)
    {'train': ['First line\\nof it.'], 'validation': ['Second.'], 'test': ['Third.']}
    """
    if sample_by not in SEPARATORS:
        raise ValueError(
            f"`sample_by` must be one of {list(SEPARATORS)}. Received: sample_by={sample_by!r}"
        )
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise ValueError(
            "`validation` and `test` must be between 0 and 1, and so must their sum. "
            f"Received: validation={validation}, test={test}"
        )
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    documents = [
        document for each in paths for document in _documents(Path(each), SEPARATORS[sample_by])
    ]
    if len(documents) < 3:
        parts = {"paragraph": "blank lines part them", "line": "each is a line"}
        raise ValueError(
            "There must be at least 3 documents, one for each split. Received: "
            f"{len(documents)} in {[str(each) for each in paths]} with sample_by={sample_by!r} "
            f"({parts[sample_by]}). Where a text has no blank lines, sample_by='line' makes each "
            "line a document."
        )
    held_out = [max(1, round(part * len(documents))) for part in (validation, test)]
    train_end = max(1, len(documents) - sum(held_out))
    test_start = min(train_end + held_out[0], len(documents) - 1)
    return Corpus(
        train=documents[:train_end],
        validation=documents[train_end:test_start],
        test=documents[test_start:],
    )


def _documents(path: Path, separator: str) -> list[str]:
    try:
        # A byte order mark is a mark of some editors, not text.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The file must be UTF-8 text. Received: {path}, whose byte {error.start} is "
            f"{error.object[error.start]:#04x}: {error.reason}. Convert the file first."
        ) from error
    documents = (document.strip("\n") for document in re.split(separator, text))
    return [document for document in documents if document.strip()]
