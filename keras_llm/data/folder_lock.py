"""One process at a time writes to a folder."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def folder_lock(folder: Path, name: str) -> Iterator[None]:
    """Context manager: no other process, and no other call in this one, has this lock meanwhile.

    The system gives it back when the process ends, however it ends. The file `.lock` stays.

    Args:
        folder: The folder.
        name: What the folder is called as the caller's argument.

    Raises:
        RuntimeError: another one has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"{name} is being written by another process: wait for it, or write to another "
                f"directory. Received: {name}={str(folder)!r}"
            ) from error
        except OSError as error:
            warnings.warn(f"{folder} cannot be locked ({error}): write to it once.", stacklevel=3)
        yield
