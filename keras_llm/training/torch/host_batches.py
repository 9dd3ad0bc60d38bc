"""Batches on their way from the host to a GPU, for which nobody waits.

A copy from ordinary memory waits until the device has done all that was asked of it before. From
pinned memory it is one more thing in the device's queue: while the device trains on a batch, the
host has read the next one, and its copy is in the queue. Keras copies arrays and what a generator
yields as it takes a batch, from ordinary memory; so they are handed to it as something that it does
not copy.
"""

import inspect
import math

import keras
import numpy as np
import torch

from keras_llm.counted_tokens import is_counted


def copied(leaf):
    """An array or a tensor as a tensor on the model's device; None stays None."""
    if leaf is None:
        return None
    if uses_gpu() and not getattr(leaf, "is_cuda", False):
        with keras.device("cpu"):
            leaf = keras.ops.convert_to_tensor(leaf)
        leaf = to_gpu(leaf)
    return keras.ops.convert_to_tensor(leaf)


def to_gpu(tensor):
    """A copy that is on its way when this returns."""
    # The allocator of pinned memory does not give it away before the copy is done.
    return tensor.pin_memory().to("cuda", non_blocking=True)


def uses_gpu() -> bool:
    """Whether tensors are made on an NVIDIA GPU."""
    return torch.cuda.is_available() and keras.ops.arange(0).is_cuda


def label_counts(labels, ignore_index):
    """How many labels of each row of a batch may count, `[rows]`, read before the batch is copied.

    None where the host cannot tell: the labels are on a device, or are no integers.
    """
    is_readable = isinstance(labels, np.ndarray | torch.Tensor) and labels.ndim > 1
    if not is_readable or getattr(labels, "is_cuda", False) or ignore_index is None:
        return None
    if "int" not in keras.backend.standardize_dtype(labels.dtype):
        return None
    with keras.device("cpu"):
        counted = is_counted(keras.ops.convert_to_tensor(labels), ignore_index)
    return counted.flatten(1).sum(1)


def on_host(data, batch_size, steps, shuffle):
    """The data of `fit` or `evaluate`, so that Keras does not copy its batches to a GPU.

    Args:
        data: `(x, y, sample_weight)`; the last ones may be left out.
        batch_size, steps, shuffle: As of `fit`.

    Returns:
        Arrays as a `DataLoader` with Keras's batches in Keras's order; a generator as one that has
        its batches copied. None for anything else, and where there is no GPU.
    """
    if not uses_gpu():
        return None
    if inspect.isgenerator(data[0]):
        return (keras.tree.map_structure(copied, batch, none_is_leaf=False) for batch in data[0])
    while data[-1] is None and len(data) > 1:
        data = data[:-1]
    if shuffle == "batch" or not are_rows(data):
        return None
    rows = Rows(data)
    if not batch_size:
        batch_size = math.ceil(len(rows) / steps) if steps else 32
    sampler = torch.utils.data.RandomSampler if shuffle else torch.utils.data.SequentialSampler
    return torch.utils.data.DataLoader(
        rows,
        batch_sampler=torch.utils.data.BatchSampler(
            sampler(range(len(rows))), batch_size, drop_last=False
        ),
        collate_fn=lambda batch: batch,
    )


def are_rows(arrays) -> bool:
    """Whether all of these are arrays on the host, with as many rows each."""
    leaves = keras.tree.flatten(arrays)
    return all(is_array(leaf) for leaf in leaves) and len({len(leaf) for leaf in leaves}) == 1


def is_array(leaf) -> bool:
    """Whether it is an array of one dimension or more, on the host."""
    is_one = isinstance(leaf, np.ndarray | torch.Tensor) and len(leaf.shape) > 0
    return is_one and not getattr(leaf, "is_cuda", False)


class Rows(torch.utils.data.Dataset):
    """The rows of arrays, floats in Keras's default dtype, as Keras takes them.

    Args:
        arrays: A tuple of arrays or tensors with as many rows each, however nested.
    """

    def __init__(self, arrays):
        self.arrays = arrays

    def __len__(self):
        return len(keras.tree.flatten(self.arrays)[0])

    def __getitems__(self, rows):
        return keras.tree.map_structure(lambda leaf: in_default_dtype(leaf[rows]), self.arrays)


def in_default_dtype(array):
    """The array, in Keras's default dtype if it is one of floats."""
    name = keras.backend.standardize_dtype(array.dtype)
    if "float" not in name or name == keras.config.floatx():
        return array
    with keras.device("cpu"):
        return keras.ops.convert_to_tensor(array, keras.config.floatx())
