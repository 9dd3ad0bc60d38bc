"""What people hand to `fit` in place of arrays, and class weights, as arrays."""

import numpy as np

from keras_llm.backend import LARGE_ID_DTYPE, host_values
from keras_llm.backend.host import to_numpy
from keras_llm.token_statistics import NEGATIVE_WEIGHT


def as_arrays(part):
    """Nested lists of numbers as arrays, and ids of 64 bits without a sign as ids with one.

    Keras takes a list for several inputs, and its numbers for tensors; PyTorch has no arithmetic on
    uint64. Anything else is returned as it is.

    Raises:
        ValueError: rows of a list have different lengths, or an integer is too large.

    >>> as_arrays({"ids": [[1, 2], [3, 4]]})["ids"].shape
    (2, 2)
    """
    if isinstance(part, np.ndarray) and part.dtype in (np.uint64, np.int64):
        return in_range(part)
    if isinstance(part, dict):
        return {key: as_arrays(value) for key, value in part.items()}
    if type(part) not in (list, tuple) or not part:
        return part
    if not isinstance(first_leaf(part), int | float | np.number):
        return type(part)(as_arrays(each) for each in part)
    try:
        return np.array(part)
    except ValueError as error:
        lengths = sorted({len(row) for row in part if hasattr(row, "__len__")})
        raise ValueError(
            "Rows must be of one length: fill the shorter ones up with padding. "
            f"Received: a list with rows of the lengths {lengths}"
        ) from error


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
    labels = to_numpy(labels)
    weights = np.ones(labels.shape, "float32")
    for label, weight in class_weight.items():
        weights[labels == label] = weight
    return weights


def check_not_negative(sample_weight):
    """Raises `ValueError` for a negative weight of a loss whose sum is divided by the weights."""
    values = host_values(sample_weight) if hasattr(sample_weight, "shape") else None
    if values is not None and values.size and values.min() < 0:
        raise ValueError(NEGATIVE_WEIGHT.format(float(values.min())))
