"""One process at a time: a lock that the system drops when its process ends, however it ends."""

import os
import socket
import weakref
from pathlib import Path
from typing import ClassVar

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class FolderInUseError(BlockingIOError):
    """Another process, or another part of this one, writes into the folder."""


class FolderLock:
    """A file that is locked while its process, or `release`, wants it so.

    The file says who has the lock; the lock itself is the system's, so none is left behind by a
    process that was killed. Where the system has no such locks, nothing is locked.

    Args:
        path: The file. Its folder must exist when `acquire` is called.
        what: What is written into the folder, for the error.

    Example:

    >>> import tempfile
    >>> with FolderLock(Path(tempfile.mkdtemp(), "lock"), "tokens") as lock:
    ...     lock.path.exists()
    True
    """

    # Those that this process holds.
    held: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, path: Path, what: str):
        self.path, self.what, self._file = path, what, None

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *_):
        self.release()

    def acquire(self) -> None:
        """Takes the lock, unless it is held already.

        Raises:
            FolderInUseError: somebody else has it.
            OSError: the file cannot be written.
        """
        if fcntl is None or self._is_held():
            return
        self.release()
        # Not truncated yet: it may be another's.
        file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                file.seek(0)
                owner = file.read(200).strip() or "unknown"
            raise FolderInUseError(
                f"{self.path.parent} is in use: another run writes {self.what} there ({owner}). "
                "Wait until it has ended, end it, or give another directory."
            ) from error
        except OSError:
            # A file system without locks.
            file.close()
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        self.held.add(self)

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_held(self):
        """Whether the lock is that of the file that has the name now: the folder may be new."""
        try:
            mine, there = os.fstat(self._file.fileno()), os.stat(self.path)
        except (AttributeError, FileNotFoundError):
            return False
        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)


def release_in_child():
    """A forked process, such as a loader's worker, may live longer than the run."""
    for lock in FolderLock.held:
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=release_in_child)
