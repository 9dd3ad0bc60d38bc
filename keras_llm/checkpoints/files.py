"""One checkpoint: a folder of files, each with a checksum, and a marker that is written last."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from keras_llm.checkpoints.state_tree import unpack
from keras_llm.checkpoints.tensor_file import read_tensors, write_tensors
from keras_llm.synced_file import sync_folder

STATE, TENSORS, MANIFEST, MARKER = "state.json", "tensors.safetensors", "manifest.json", "complete"
FORMAT = 1
# No manifest is longer.
MANIFEST_BYTES = 10_000


class DamagedCheckpointError(ValueError):
    """A checkpoint that was not written to its end, or has changed since."""


def write_checkpoint(path: Path, packed: Any, arrays: dict) -> None:
    """Writes a checkpoint: it is whole, and on the disk, or it does not count.

    All files are written under another name and synced, then renamed together; the marker is the
    last. A process may be killed, and a machine stop, between any two of these.

    Args:
        path: Its folder. What is there is replaced.
        packed, arrays: What `pack` returned.

    Raises:
        OSError: the disk is full, or cannot be written; `path` is then as it was, or missing.
    """
    half = path.with_name(f".writing_{path.name}")
    remove(half)
    try:
        half.mkdir(parents=True)
        text = json.dumps(packed, indent=1, allow_nan=False).encode()
        files = {STATE: write_bytes(half / STATE, text)}
        files[TENSORS] = write_tensors(half / TENSORS, arrays)
        listed = {name: {"bytes": size, "sha256": sha} for name, (size, sha) in files.items()}
        manifest = json.dumps({"format": FORMAT, "files": listed}, indent=1).encode()
        _, sha = write_bytes(half / MANIFEST, manifest)
        sync_folder(half)
        remove(path)
        half.rename(path)
        sync_folder(path.parent)
        write_bytes(path / MARKER, sha.encode())
        sync_folder(path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(half)
        raise


def read_checkpoint(path: Path) -> Any:
    """The state of a checkpoint.

    Raises:
        DamagedCheckpointError: a file is missing, or not as it was written; it names the file.
        OSError: a file cannot be read.
    """
    try:
        for name in (STATE, TENSORS, MANIFEST, MARKER):
            if (path / name).is_symlink():
                raise DamagedCheckpointError(f"{name} is a link, which no checkpoint has")
        if not (path / MARKER).is_file():
            raise DamagedCheckpointError("it was not written to its end")
        manifest = (path / MANIFEST).read_bytes()[:MANIFEST_BYTES]
        if hashlib.sha256(manifest).hexdigest().encode() != (path / MARKER).read_bytes():
            raise DamagedCheckpointError(f"{MANIFEST} or {MARKER} has changed")
        listed = json.loads(manifest)
        if listed["format"] != FORMAT:
            raise DamagedCheckpointError(f"its format is {listed['format']!r}, not {FORMAT}")
        # Names that a manifest may give to files are not used as such.
        for name in (STATE, TENSORS):
            check(path / name, listed["files"][name])
        return unpack(json.loads((path / STATE).read_bytes()), read_tensors(path / TENSORS))
    except DamagedCheckpointError:
        raise
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{Path(str(error.filename)).name} is missing") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedCheckpointError(f"it cannot be read: {error}") from error


def check(path: Path, listed: dict) -> None:
    """Raises `DamagedCheckpointError` where a file is not the one that was written."""
    size = path.stat().st_size
    if size != listed["bytes"]:
        raise DamagedCheckpointError(
            f"{path.name} has {size:,} bytes and was written with {listed['bytes']:,}"
        )
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != listed["sha256"]:
            raise DamagedCheckpointError(f"{path.name} has changed since it was written")


def write_bytes(path: Path, content: bytes) -> tuple[int, str]:
    """Writes a new file to the disk; returns its size and its SHA-256."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return len(content), hashlib.sha256(content).hexdigest()


def remove(path: Path) -> None:
    """Removes a checkpoint, if it is there; at every instant it is whole or not marked as such."""
    (path / MARKER).unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
