"""A safetensors file that is written, and hashed, in one pass."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import load, save

from keras_llm.checkpoints.state_tree import DTYPES
from keras_llm.checkpoints.torch_tensors import to_array, to_tensor

# Bytes that are written at a time.
PIECE = 1 << 24


def write_tensors(path: Path, arrays: dict[str, np.ndarray]) -> tuple[int, str]:
    """Writes arrays as a safetensors file that is on the disk when this returns.

    `safetensors.numpy.save_file` would have to be read again for its hash. Here other threads run
    all the while: writing and hashing do not hold Python's lock.

    Args:
        path: The file, a new one.
        arrays: In one piece each, of the dtypes in `DTYPES`.

    Returns:
        Its size in bytes, and its SHA-256.
    """
    # Wide ones first, so that each begins at a multiple of its width, as the format wants.
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header, end = {}, 0
    for name in names:
        array, begin = arrays[name], end
        end += array.nbytes
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for part in [len(text).to_bytes(8, "little") + text, *(arrays[name] for name in names)]:
            data = memoryview(part) if isinstance(part, bytes) else bytes_of(part)
            for start in range(0, len(data), PIECE):
                digest.update(data[start : start + PIECE])
                file.write(data[start : start + PIECE])
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return size, digest.hexdigest()


def to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """What a safetensors file of the arrays holds."""
    return save({name: to_tensor(array) for name, array in arrays.items()})


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """The arrays that `to_bytes` was given."""
    return {name: to_array(tensor) for name, tensor in load(data).items()}


def bytes_of(array: np.ndarray) -> memoryview:
    """The memory of an array."""
    return memoryview(array.reshape(-1).view(np.uint8))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
        ValueError: it is none.
    """
    try:
        # Not "np", which has no float8.
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: to_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:
        # Besides a SafetensorError: a header may ask for a dtype that nobody has.
        raise ValueError(f"{path.name} is no whole safetensors file: {error}") from error
