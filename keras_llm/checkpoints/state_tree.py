"""A nested state as JSON and arrays, and back: nothing of it can run when it is read."""

import math
import numbers
from typing import Any

import numpy as np

from keras_llm.backend.host import to_numpy
from keras_llm.checkpoints import torch_tensors

# The dtypes of a safetensors file that numpy, with `ml_dtypes`, and PyTorch both have.
DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
# Keys of what JSON has not. Other dictionaries with such a key are written as `$items`.
ARRAY, TUPLE, FLOAT, ITEMS = "$array", "$tuple", "$float", "$items"


def pack(state: Any, name: str = "") -> tuple[Any, dict[str, np.ndarray]]:
    """What `json.dumps` takes, and the arrays that it names; both are copies.

    Args:
        state: Nested dictionaries, lists and tuples of numbers, texts, None, arrays and tensors.
            Dictionaries, lists and tuples of other classes come back as plain ones.
        name: What the names of the arrays begin with.

    Raises:
        TypeError: there is anything else in it.

    Example:

    >>> text, arrays = pack({"step": 3, "slots": (np.zeros(2), float("nan"))})
    >>> text
    {'step': 3, 'slots': {'$tuple': [{'$array': 'slots/0', 'as': 'numpy'}, {'$float': 'nan'}]}}
    >>> arrays
    {'slots/0': array([0., 0.])}
    >>> unpack(text, arrays)
    {'step': 3, 'slots': (array([0., 0.]), nan)}
    """
    arrays: dict[str, np.ndarray] = {}
    return _packed(state, name, arrays), arrays


def unpack(packed: Any, arrays: dict[str, np.ndarray]) -> Any:
    """What `pack` was given.

    Raises:
        ValueError: it was made by something else.
    """
    if isinstance(packed, list):
        return [unpack(each, arrays) for each in packed]
    if not isinstance(packed, dict):
        return packed
    try:
        if ARRAY in packed:
            return _as(arrays[packed[ARRAY]], packed["as"])
        if TUPLE in packed:
            return tuple(unpack(each, arrays) for each in packed[TUPLE])
        if FLOAT in packed:
            return float(packed[FLOAT])
        if ITEMS in packed:
            return {unpack(k, arrays): unpack(v, arrays) for k, v in packed[ITEMS]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no state that was saved: {str(packed)[:200]}") from error
    return {key: unpack(value, arrays) for key, value in packed.items()}


def is_plain(value: Any) -> bool:
    """Whether `pack` takes a value."""
    if isinstance(value, dict):
        return all(is_plain(each) for each in (*value, *value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if value is None or isinstance(value, str | numbers.Integral | float):
        return True
    return hasattr(value, "dtype") and str(value.dtype).removeprefix("torch.") in DTYPES


def _packed(value, name, arrays):
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic):
        return _note(np.array(value), name, arrays, "scalar")
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {FLOAT: str(float(value))}
    if isinstance(value, dict):
        under = {key: f"{name}/{key}" if name else str(key) for key in value}
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {str(key): _packed(each, under[key], arrays) for key, each in value.items()}
        pairs = [
            [_packed(k, f"{under[k]}/key", arrays), _packed(v, under[k], arrays)]
            for k, v in value.items()
        ]
        return {ITEMS: pairs}
    if isinstance(value, list | tuple):
        parts = [
            _packed(each, f"{name}/{i}" if name else str(i), arrays) for i, each in enumerate(value)
        ]
        return {TUPLE: parts} if isinstance(value, tuple) else parts
    if torch_tensors.is_tensor(value):
        return _note(torch_tensors.to_array(value), name, arrays, "torch")
    if isinstance(value, np.ndarray):
        native = value.dtype if value.dtype.isnative else value.dtype.newbyteorder("=")
        return _note(np.array(value, native, order="C"), name, arrays, "numpy")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _note(to_numpy(value), name, arrays, "numpy")
    raise TypeError(
        "A state must consist of numbers, texts, arrays, None, and dictionaries, lists and tuples "
        f"of these. Received: {type(value).__name__} at {name or 'its top'!r}"
    )


def _note(array, name, arrays, kind):
    if array.dtype.name not in DTYPES:
        raise TypeError(f"A state cannot hold an array of {array.dtype}. Received: {name!r}")
    unique, number = name or "value", 0
    while unique in arrays:
        number += 1
        unique = f"{name}~{number}"
    arrays[unique] = array
    return {ARRAY: unique, "as": kind}


def _as(array, kind):
    if kind == "torch":
        return torch_tensors.to_tensor(array)
    return array[()] if kind == "scalar" else array
