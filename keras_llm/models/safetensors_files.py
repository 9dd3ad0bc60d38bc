"""The weights of a Hugging Face folder: one safetensors file, or several and an index."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from keras_llm.json_files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Every name that `write_tensors` may give to a file.
WEIGHT_FILES = r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
# The arrays of one file are in memory at once while it is written.
BYTES_PER_FILE = 5 * 10**9
DTYPES = ("F64", "F32", "F16", "BF16")


def write_tensors(
    folder: Path, sizes: Mapping[str, int], array: Callable[[str], np.ndarray]
) -> None:
    """Writes `model.safetensors`, or, above `BYTES_PER_FILE`, several files and their index.

    Args:
        folder: Where to.
        sizes: The names of the tensors, and their sizes in bytes.
        array: Called with a name, returns the tensor.
    """
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room:
            groups.append([])
            room = BYTES_PER_FILE
        groups[-1].append(name)
        room -= size

    files = {}
    for i, names in enumerate(groups, start=1):
        file = SINGLE if len(groups) == 1 else f"model-{i:05}-of-{len(groups):05}.safetensors"
        files |= dict.fromkeys(names, file)
        # save_file writes the memory of an array as it lies there, transposed or not.
        arrays = {name: np.ascontiguousarray(array(name)) for name in names}
        path = folder / file
        path.touch()
        mode = path.stat().st_mode
        # transformers refuses a file that does not say whose it is.
        save_file(arrays, path, metadata={"format": "pt"})
        # It makes files that only their owner can read.
        path.chmod(mode)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Context manager: the tensors of a folder by their names, none of which is read yet.

    Each has `get_shape()`; `[:]` reads it.

    Raises:
        FileNotFoundError: there are no weights, or a file of the index is missing.
        ValueError: a file is damaged, the index leaves the folder, or a tensor is quantised.
    """
    with contextlib.ExitStack() as stack:
        tensors = {}
        for path in tensor_files(folder):
            try:
                file = stack.enter_context(safe_open(os.fspath(path), framework="np"))
            except SafetensorError as error:
                raise ValueError(f"{path} is no whole safetensors file: {error}") from error
            for name in file.keys():  # noqa: SIM118  (it is no dictionary)
                tensors[name] = file.get_slice(name)
                if (dtype := tensors[name].get_dtype()) not in DTYPES:
                    raise ValueError(
                        f"Weights must be one of {DTYPES}: quantised ones cannot be trained. "
                        f"Received: {name} of {dtype} in {path}"
                    )
        yield tensors


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; where there are both, not those of the index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"folder must hold {SINGLE} or {INDEX}. Weights of another format are converted by "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder). "
            f"Received: folder={str(folder)!r}"
        )
    index = read_json(folder / INDEX)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(map(is_file_name, files.values())):
        raise ValueError(
            f"{INDEX} must have a weight_map from tensors to names of safetensors files in the "
            f"same folder. Received: {str(files)[:200]}"
        )
    return [folder / name for name in sorted(set(files.values()))]


def is_file_name(name: Any) -> bool:
    """Whether it names a safetensors file of the same folder: no path leads elsewhere."""
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and PurePosixPath(name).name == PureWindowsPath(name).name == name
    )
