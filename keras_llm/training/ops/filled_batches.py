"""Batches with rows added that do not count, so that several devices have as many rows each.

Keras spreads a batch over devices only where they divide it. An added row repeats the last one, its
labels are `ignore_index`, its weight is 0. It adds nothing to a sum over tokens.
"""

import keras
import numpy as np

from keras_llm.backend.keras_private import batches_through
from keras_llm.backend.ops.device_rows import devices_of_rows
from keras_llm.training.user_callbacks import callback_list

# What stands in the place of weights where metrics count rows whatever their labels.
WEIGHTS, FILLED = "weights", "filled"


def missing_rows(batch, devices: int) -> int:
    """How many rows have to be added to a batch, however nested."""
    first = next(leaf for leaf in keras.tree.flatten(batch) if leaf is not None)
    return -first.shape[0] % devices


def filled_up(part, missing: int):
    """Arrays with their last row repeated."""
    if not missing:
        return part
    return keras.tree.map_structure(lambda leaf: with_rows(leaf, missing), part)


def with_rows(leaf, missing: int):
    """An array with its last row repeated; None remains None."""
    if leaf is None:
        return None
    leaf = np.asarray(leaf)
    return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)])


def with_ignored_rows(y, missing: int, loss):
    """Labels, or a structure that holds them, with rows that a loss ignores.

    Args:
        y: As of `fit`.
        missing: How many rows.
        loss: A `MaskedLoss`.
    """
    labels = loss.labels(y)

    def added(leaf):
        rows = with_rows(leaf, missing)
        if leaf is not labels or rows.dtype.kind not in "iu":
            return rows
        ignored = np.array(loss.ignore_index)
        limits = np.iinfo(rows.dtype)
        if not limits.min <= loss.ignore_index <= limits.max:
            # JAX's largest dtype, where numbers wrap around.
            rows, ignored = rows.astype("int32"), ignored.astype("int32")
        rows[-missing:] = ignored
        return rows

    return keras.tree.map_structure(added, y) if missing else y


def without_weight(sample_weight, missing: int):
    """Weights with rows of weight 0; None remains None."""
    sample_weight = filled_up(sample_weight, missing)
    if missing:
        for leaf in keras.tree.flatten(sample_weight):
            if leaf is not None:
                leaf[-missing:] = 0
    return sample_weight


def with_count(sample_weight, missing: int, devices: int) -> dict:
    """Weights, and in the shape of an array, which a compiled function knows, how many were added.

    Keras spreads its first dimension over the devices, as it does with all arrays of a batch.
    """
    return {WEIGHTS: sample_weight, FILLED: np.zeros((devices, missing), "bool")}


def weights_and_count(sample_weight):
    """What `with_count` has put together; anything else comes with a count of 0."""
    if isinstance(sample_weight, dict) and set(sample_weight) == {WEIGHTS, FILLED}:
        return sample_weight[WEIGHTS], sample_weight[FILLED].shape[1]
    return sample_weight, 0


class RowsOfData(keras.callbacks.Callback):
    """Leaves the rows that were added out of what the callbacks behind it see of `predict`.

    Args:
        are_of_data: Of each batch, which of its rows are of the data; it grows as they are read.
    """

    def __init__(self, are_of_data: list):
        super().__init__()
        self.are_of_data = iter(are_of_data)

    def on_predict_batch_end(self, batch, logs=None):
        """Cuts the predictions, which with `steps_per_execution` are those of several batches."""
        count = next(len(leaf) for leaf in keras.tree.flatten(logs) if hasattr(leaf, "shape"))
        kept = next(self.are_of_data)
        while len(kept) < count:
            kept = np.concatenate([kept, next(self.are_of_data)])
        for name, outputs in logs.items():
            logs[name] = keras.tree.map_structure(lambda output: output[kept], outputs)


def predicted_by_devices(predict, x, batch_size, steps, callbacks):
    """Predictions for `x`, in batches that are filled up, without the rows that were added.

    Args:
        predict: Keras's, as a function of `x` and `callbacks`.
        x, batch_size, steps, callbacks: As of `predict`.
    """
    devices, are_of_data = devices_of_rows(), []

    def change(batches):
        # Keras may have read a batch to build the model.
        are_of_data.clear()
        for batch in batches:
            missing = missing_rows(batch, devices)
            batch = filled_up(batch, missing)
            count = keras.tree.flatten(batch)[0].shape[0]
            are_of_data.append(np.arange(count) < count - missing)
            yield batch

    options = {"batch_size": batch_size, "steps_per_epoch": steps, "shuffle": False}
    changed = batches_through(change, (x,), **options)
    if changed is None:
        return predict(x, callbacks=callbacks)
    if callbacks:
        callbacks = [RowsOfData(are_of_data), *callback_list(callbacks)]
    outputs, kept = predict(changed, callbacks=callbacks), np.concatenate(are_of_data)
    return keras.tree.map_structure(lambda output: output[kept], outputs)
