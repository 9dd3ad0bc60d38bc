"""A folder of numbered checkpoints: which is the newest good one, and which may be deleted."""

import contextlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from keras_llm.checkpoints.files import (
    MARKER,
    DamagedCheckpointError,
    read_checkpoint,
    remove,
    write_checkpoint,
)
from keras_llm.folder_lock import FolderLock

# No time in it: a clock may go back.
NAME = re.compile(r"step_(\d+)_epoch_(\d+)")
LEFTOVER = re.compile(r"\.writing_.*")


class Found(NamedTuple):
    """What reading a folder has found.

    Attributes:
        name: The newest good checkpoint; None where there is none.
        state: Its state.
        bad: Newer ones that are half-written or damaged, and why, as sentences.
    """

    name: str | None
    state: Any
    bad: list[str]


class CheckpointFolder:
    """Checkpoints named by what was trained: `step_000000300_epoch_0001` after 300 steps.

        step_000000300_epoch_0001/
            state.json              numbers and texts; it names the tensors
            tensors.safetensors     arrays and tensors
            manifest.json           size and SHA-256 of both
            complete                SHA-256 of the manifest; the last file to be written

    One process at a time may write, from `open` (or the first `write`) to `close`.

    Args:
        path: The folder. It is created when it is needed.
        keep: How many of the newest are kept.

    Example:

    >>> import tempfile
    >>> from keras_llm.checkpoints.state_tree import pack
    >>> folder = CheckpointFolder(tempfile.mkdtemp(), keep=2)
    >>> for steps in (1, 2, 3):
    ...     folder.write(folder.name(steps, epoch=0), *pack({"steps": steps}))
    >>> folder.names()
    ['step_000000003_epoch_0000', 'step_000000002_epoch_0000']
    >>> folder.newest().state
    {'steps': 3}
    >>> folder.close()
    """

    def __init__(self, path, keep: int):
        self.path, self.keep = Path(path), keep
        self.lock = FolderLock(self.path / "lock", "its checkpoints")
        self._bad: set[str] = set()
        # What this object has read or written whole, the last one last.
        self.good: list[str] = []

    def open(self) -> None:
        """Takes the folder for this process.

        Raises:
            FolderInUseError: another process has it.
            OSError: it cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock.acquire()

    def close(self) -> None:
        """Gives the folder back."""
        self.lock.release()

    @staticmethod
    def name(steps: int, epoch: int) -> str:
        """The name of a checkpoint."""
        return f"step_{steps:09}_epoch_{epoch:04}"

    def names(self) -> list[str]:
        """The checkpoints of the folder, whole or not, the newest first."""
        if not self.path.is_dir():
            return []
        found = {
            (int(match[1]), int(match[2])): path.name
            for path in self.path.iterdir()
            if (match := NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
        }
        return [name for _, name in sorted(found.items(), reverse=True)]

    def newest(self) -> Found:
        """The newest good checkpoint.

        Raises:
            DamagedCheckpointError: there are whole ones, and all of them are damaged.
        """
        reasons: list[str] = []
        are_damaged = False
        for name in self.names():
            try:
                state = read_checkpoint(self.path / name)
            except (DamagedCheckpointError, OSError) as error:
                self._bad.add(name)
                are_damaged |= self._has_marker(name)
                reasons.append(f"{self.path / name}: {error}.")
            else:
                self.good.append(name)
                return Found(name, state, reasons)
        if are_damaged:
            raise DamagedCheckpointError(
                "No checkpoint can be read. To begin anew, move them elsewhere or give another "
                f"directory. Received: {' '.join(reasons)}"
            )
        return Found(None, None, reasons)

    def write(self, name: str, packed: Any, arrays: dict, keep: Collection[str] = ()) -> None:
        """Writes a checkpoint, then deletes those that are not needed any more.

        Args:
            name: As `name` makes it.
            packed, arrays: What `pack` returned.
            keep: More names that are kept.

        Raises:
            OSError: it cannot be written, or another process writes here; nothing was deleted.
        """
        self.open()
        write_checkpoint(self.path / name, packed, arrays)
        self._bad.discard(name)
        self.good.append(name)
        whole = [n for n in self.names() if self._has_marker(n) and n not in self._bad]
        older = whole[whole.index(name) :]
        wanted = {*older[: self.keep], *keep}
        for path in list(self.path.iterdir()):
            is_old = NAME.fullmatch(path.name) and path.name not in wanted
            # What cannot be deleted now is deleted the next time.
            if (is_old or LEFTOVER.fullmatch(path.name)) and not path.is_symlink():
                with contextlib.suppress(OSError):
                    remove(path)

    def _has_marker(self, name):
        try:
            return (self.path / name / MARKER).is_file()
        except OSError:
            return False
