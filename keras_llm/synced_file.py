"""A file that is whole or not there, whenever the machine stops."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """Context manager: a file with a temporary name, which replaces `path` once it is on the disk.

    If the block raises, `path` is as it was.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "numbers")
    >>> with synced_file(path) as file:
    ...     _ = file.write(bytes([1, 2]))
    ...     path.exists()
    False
    >>> path.read_bytes()
    b'\\x01\\x02'
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with open(new, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings the names of a folder's files to the disk, on systems that can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
