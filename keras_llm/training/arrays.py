"""What people hand to `fit` in place of arrays, and class weights, as arrays."""

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_llm.arguments import check_number
from keras_llm.backend import LARGE_ID_DTYPE
from keras_llm.backend.host import to_numpy


def as_arrays(part):
    """Nested lists of numbers as arrays, and ids of 64 bits without a sign as ids with one.

    Keras takes a list for several inputs, and its numbers for tensors; PyTorch has no arithmetic on
    uint64. A column of `datasets` is the list of its rows. Anything else is returned as it is.

    Raises:
        TypeError: an array holds texts or objects.
        ValueError: rows of a list have different lengths, or an integer is too large.

    >>> as_arrays({"ids": [[1, 2], [3, 4]]})["ids"].shape
    (2, 2)
    """
    if isinstance(part, np.ndarray):
        return numeric(part)
    if isinstance(part, dict):
        return {key: as_arrays(value) for key, value in part.items()}
    if isinstance(part, Sequence) and type(part).__module__.startswith("datasets."):
        part = part[:]  # a column that is read when it is asked for
    if type(part) not in (list, tuple) or not part:
        return part
    if not isinstance(first_leaf(part), int | float | np.number):
        return type(part)(as_arrays(each) for each in part)
    try:
        array = np.array(part)
    except ValueError as error:
        lengths = sorted({len(row) for row in part if hasattr(row, "__len__")})
        raise ValueError(
            "Rows must be of one length: fill the shorter ones up with padding. "
            f"Received: a list with rows of the lengths {lengths}"
        ) from error
    return numeric(array)


def check_rows(part, name: str) -> None:
    """Raises `ValueError` unless there are rows in arrays, or something that yields them.

    Args:
        part: What `as_arrays` returned.
        name: Its name as an argument.
    """
    leaves = keras.tree.flatten(part)
    for leaf in leaves or [part]:
        shape = getattr(leaf, "shape", (1,))
        if leaf is None or not leaves or not len(shape) or shape[0] == 0:
            received = f"shape={tuple(shape)}" if hasattr(leaf, "shape") else f"{part!r:.80}"
            raise ValueError(
                f"{name} must be arrays with at least one row, [batch, ...], or a loader of them. "
                f"Received: {received}"
            )


def split_rows(part, share: float) -> tuple:
    """The first rows of arrays, however nested, and the last ones, as `validation_split` has them.

    Raises:
        ValueError: one of the two would have no rows.

    >>> [half.tolist() for half in split_rows(np.arange(4), 0.25)]
    [[0, 1, 2], [3]]
    """
    leaves = [leaf for leaf in keras.tree.flatten(part) if leaf is not None]
    if not all(hasattr(leaf, "shape") for leaf in leaves):
        raise ValueError(
            "validation_split needs arrays; of other data hold some out by validation_data=... "
            f"Received: {type(leaves[0]).__name__}"
        )
    count = leaves[0].shape[0]
    first = math.floor(count * (1.0 - share))
    if not 0 < first < count:
        raise ValueError(
            "validation_split must leave rows to train and rows to validate. "
            f"Received: validation_split={share} of {count} rows"
        )

    def cut(rows):
        return keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[rows], part)

    return cut(slice(first)), cut(slice(first, None))


def numeric(array: np.ndarray) -> np.ndarray:
    """The array, if it holds numbers that the backend has; raises `TypeError` for other things."""
    # TensorFlow's models may take text.
    if array.dtype.kind in "OSU" and keras.backend.backend() != "tensorflow":
        raise TypeError(
            "Arrays must hold numbers; tokenizer.encode(text) makes ids. "
            f"Received: dtype={array.dtype}, first value {array.flat[:1].tolist()}"
        )
    return in_range(array) if array.dtype in (np.uint64, np.int64) else array


def in_range(ids: np.ndarray) -> np.ndarray:
    """Ids of 64 bits with a sign, if the backend holds their values."""
    limits = np.iinfo(LARGE_ID_DTYPE)
    if ids.size and not limits.min <= ids.min() <= ids.max() <= limits.max:
        raise ValueError(
            f"Integers must be in [{limits.min}, {limits.max}], the range of {LARGE_ID_DTYPE}, on "
            f"this backend. Received: {ids.min()} to {ids.max()}"
        )
    return ids.astype(np.int64, copy=False)


def first_leaf(part):
    """The first thing in nested lists that is not a list; None where there is none."""
    while type(part) in (list, tuple):
        if not part:
            return None
        part = part[0]
    return part


def class_weights(labels, class_weight: dict) -> np.ndarray:
    """The weight of each token, by the class of its label; 1 for a class that is not named.

    Keras would give each *row* one weight, by the position of its largest label.

    Args:
        labels: Integers of any shape.
        class_weight: Weights by class, as in `keras.Model.fit`.

    >>> class_weights(np.array([[1, 2, 0]]), {2: 0.5}).tolist()
    [[1.0, 0.5, 1.0]]
    """
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            f"class_weight must be a dictionary from classes to weights. Received: {class_weight!r}"
        )
    labels = to_numpy(labels)
    weights = np.ones(labels.shape, "float32")
    for label, weight in class_weight.items():
        weights[labels == label] = check_number(weight, f"class_weight[{label!r}]", "[0, inf)")
    return weights
