"""Files that replace older ones only when all of them are written."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_files(folder: str | os.PathLike, obsolete: str | None = None) -> Iterator[Path]:
    """Context manager: a temporary folder, whose files move into `folder` at the end.

    If the block raises, the files of `folder` are as they were.

    Args:
        folder: Where the files go. It is created if it is missing; its other files stay.
        obsolete: A regular expression. Files of `folder` whose whole name it matches are removed,
            unless they were written anew.

    Example:

    >>> folder = Path(tempfile.mkdtemp())
    >>> with replaced_files(folder) as new:
    ...     _ = (new / "a.txt").write_text("1")
    ...     (folder / "a.txt").exists()
    False
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside of `folder`: on the same disk, where to move a file is one rename.
    with tempfile.TemporaryDirectory(prefix=".new_", dir=folder) as name:
        new = Path(name)
        yield new
        files = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / file, folder / file)
    if obsolete is not None:
        for path in folder.iterdir():
            if re.fullmatch(obsolete, path.name) and Path(path.name) not in files:
                path.unlink()
