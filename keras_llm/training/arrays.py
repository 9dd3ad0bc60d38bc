"""What people hand to `fit` in place of arrays, and class weights, as arrays."""

import inspect
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from keras_llm.arguments import check_number, check_weights
from keras_llm.backend import LARGE_ID_DTYPE, host_values
from keras_llm.backend.host import to_numpy

if keras.backend.backend() != "torch":
    from keras_llm.training.ops.torch_tensors import of_torch

EMPTY_BATCH = "A batch must have at least one row: leave empty ones out."


def as_arrays(part):
    """Nested lists of numbers as arrays, and ids of 64 bits without a sign as ids with one.

    Keras takes a list for several inputs, and its numbers for tensors; PyTorch has no arithmetic on
    uint64. A column of `datasets` is the list of its rows. On JAX and TensorFlow, PyTorch's tensors
    are arrays too. Anything else is returned as it is.

    Raises:
        TypeError: an array holds texts or objects.
        ValueError: rows of a list have different lengths, or an integer is too large.

    >>> as_arrays({"ids": [[1, 2], [3, 4]]})["ids"].shape
    (2, 2)
    """
    if keras.backend.backend() != "torch":
        part = of_torch(part)
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


def has_rows(part) -> bool:
    """Whether all leaves are arrays of rows, or tensors, and not a loader of them."""
    leaves = keras.tree.flatten(part)
    return bool(leaves) and all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves)


def three_parts(data: tuple, name: str) -> tuple:
    """`(x, y, sample_weight)` of a tuple of which the last ones may be left out.

    Args:
        data: The tuple.
        name: Its name as an argument.

    >>> three_parts(("x", "y"), "validation_data")
    ('x', 'y', None)
    """
    if not 1 <= len(data) <= 3:
        raise ValueError(
            f"{name} must be (x, y), (x, y, sample_weight) or a loader of them. "
            f"Received: a tuple of {len(data)}"
        )
    return (*data, None, None)[:3]


def check_rows(part, name: str) -> None:
    """Raises `ValueError` unless there are rows in arrays, or something that yields them.

    Args:
        part: What `as_arrays` returned.
        name: Its name as an argument.
    """
    leaves = keras.tree.flatten(part)
    for leaf in leaves or [part]:
        shape = () if isinstance(leaf, int | float) else getattr(leaf, "shape", (1,))
        if leaf is None or not leaves or not len(shape) or shape[0] == 0:
            received = f"shape={tuple(shape)}" if hasattr(leaf, "shape") else f"{part!r:.80}"
            raise ValueError(
                f"{name} must be arrays with at least one row, [batch, ...], or a loader of them. "
                f"Received: {received}"
            )


def check_kind(data, name: str) -> None:
    """Raises `TypeError` for data of other libraries that Keras does not read.

    Args:
        data: What may be arrays, a loader or a generator.
        name: Its name as an argument.

    >>> check_kind("to be or not", "x")
    Traceback (most recent call last):
    TypeError: x must be ids, not text: tokenizer.encode(text) makes them. Received: a str
    """
    torch_data = sys.modules.get("torch.utils.data")
    for leaf in keras.tree.flatten(data):
        if isinstance(leaf, str | bytes | os.PathLike):
            instead = "ids, not text: tokenizer.encode(text) makes them"
        elif torch_data and isinstance(leaf, torch_data.Dataset):
            instead = "a loader of batches: torch.utils.data.DataLoader(dataset, batch_size=...)"
        elif type(leaf).__module__.startswith("datasets."):
            instead = "arrays, such as the columns dataset['input_ids'] and dataset['labels']"
        elif isinstance(leaf, Iterator) and not inspect.isgenerator(leaf):
            instead = "arrays, a loader or a generator, such as (batch for batch in iterator)"
        else:
            continue
        raise TypeError(f"{name} must be {instead}. Received: a {type(leaf).__name__}")


def check_batch(x) -> None:
    """Raises `ValueError` for a batch without rows, of which layers know no shape."""
    for leaf in keras.tree.flatten(x):
        if tuple(getattr(leaf, "shape", ()))[:1] == (0,):
            raise ValueError(f"{EMPTY_BATCH} Received: shape={tuple(leaf.shape)}")


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
    # PyTorch takes the machine's order of bytes only.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
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
        if isinstance(label, str) or label != int(label):
            raise TypeError(f"class_weight must have integers as keys. Received: {label!r}")
        weights[labels == label] = check_number(weight, f"class_weight[{label!r}]", "[0, inf)")
    return weights


def check_row_classes(labels) -> None:
    """Raises `ValueError` for labels of tokens, of which Keras would weigh rows by an argmax."""
    values = host_values(labels) if np.ndim(labels) == 2 else None
    # A row of zeros and a one is a class, which Keras reads.
    if (
        values is not None
        and values.dtype.kind in "iu"
        and values.shape[1] > 1
        and values.max() > 1
    ):
        raise ValueError(
            "class_weight of labels [batch, length] needs a loss of keras_llm, such as "
            "losses.MaskedSparseCategoricalCrossentropy(); with one of Keras use sample_weight. "
            f"Received: labels of shape {values.shape}"
        )


def token_weights(loss, y, sample_weight, class_weight):
    """The weights of rows or tokens: those that were given, checked, or those of classes.

    Args:
        loss: The model's, a `MaskedLoss`.
        y, sample_weight, class_weight: As of `fit`; a weight of a class comes with labels in an
            array.

    Raises:
        TypeError: the weights of rows are no array.
        ValueError: both are given, labels are not in an array, or a weight is not allowed.
    """
    if class_weight is not None:
        if sample_weight is not None:
            raise ValueError(
                "class_weight and sample_weight exclude each other: multiply the weights. "
                f"Received: class_weight={class_weight} and a sample_weight"
            )
        if not hasattr(loss.labels(y), "shape"):
            raise ValueError(
                "class_weight needs the labels as an array, fit(x, y, class_weight=...). With "
                "other data put the weights into a focal loss, gamma=0 and alpha=[one number a "
                f"class]. Received: y={type(y).__name__}"
            )
        sample_weight = class_weights(loss.labels(y), class_weight)
    elif sample_weight is not None:
        if not getattr(sample_weight, "shape", ()):
            raise TypeError(
                "sample_weight must be an array of one weight a row or a token. "
                f"Received: a {type(sample_weight).__name__}"
            )
        # All of them before the first batch; on a GPU those of a batch cannot be seen.
        values = host_values(sample_weight)
        if values is not None:
            check_weights(values, signed=loss.reduction == "sum")
    return sample_weight
