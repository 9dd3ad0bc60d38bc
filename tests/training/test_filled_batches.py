"""Rows that fill a batch up, and the parts of it that each of several devices has."""

import numpy as np
import pytest

from keras_llm.losses import MaskedKLDivergence, MaskedSparseCategoricalCrossentropy
from keras_llm.training.arrays import split_rows
from keras_llm.training.ops.filled_batches import (
    RowsOfData,
    filled_up,
    missing_rows,
    weights_and_count,
    with_count,
    with_ignored_rows,
    without_weight,
)
from keras_llm.training.ops.gradients import rows

pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(("count", "devices", "missing"), [(8, 4, 0), (9, 4, 3), (1, 8, 7)])
def test_as_many_rows_are_missing_as_make_a_multiple(count, devices, missing):
    assert missing_rows({"none": None, "ids": np.zeros((count, 3))}, devices) == missing


def test_added_rows_repeat_the_last_and_count_nothing():
    ids = np.array([[1, 2], [3, 4]])
    filled = filled_up({"ids": ids, "none": None}, 2)
    np.testing.assert_array_equal(filled["ids"], [[1, 2], [3, 4], [3, 4], [3, 4]])
    assert filled["none"] is None
    weights = np.array([0.5, 2.0], "float32")
    np.testing.assert_array_equal(without_weight(weights, 2), [0.5, 2.0, 0.0, 0.0])
    np.testing.assert_array_equal(weights, [0.5, 2.0])
    assert without_weight(None, 2) is None


@pytest.mark.parametrize(
    ("dtype", "ignore_index", "filled"),
    [("int64", -100, "int64"), ("uint8", 0, "uint8"), ("uint8", -100, "int32")],
)
def test_labels_of_added_rows_are_ignored(dtype, ignore_index, filled):
    loss = MaskedSparseCategoricalCrossentropy(ignore_index)
    labels = with_ignored_rows(np.array([[250, 2]], dtype), 1, loss)
    assert labels.dtype == filled
    np.testing.assert_array_equal(labels, [[250, 2], [ignore_index, ignore_index]])


def test_labels_beside_a_teacher_are_found():
    teacher, labels = np.ones((1, 2, 5), "float32"), np.array([[1, 2]])
    teacher, labels = with_ignored_rows((teacher, labels), 1, MaskedKLDivergence(ignore_index=0))
    np.testing.assert_array_equal(teacher, np.ones((2, 2, 5)))
    np.testing.assert_array_equal(labels, [[1, 2], [0, 0]])


def test_callbacks_of_predict_see_rows_of_the_data():
    """Also where a call has predicted several batches, the last of them a short one."""
    masks = [np.array([True, True]), np.array([True, False]), np.array([True, False])]
    callback = RowsOfData(masks)
    for outputs, want in ((np.arange(4), [0, 1, 2]), (np.arange(4, 6), [4])):
        logs = {"logits": outputs, "hidden": [outputs[:, None]]}
        callback.on_predict_batch_end(0, logs)
        np.testing.assert_array_equal(logs["logits"], want)
        np.testing.assert_array_equal(logs["hidden"][0][:, 0], want)


def test_how_many_were_added_stands_in_a_shape():
    weights = np.ones(8)
    packed = with_count(weights, 3, 4)
    assert all(array.shape[0] % 4 == 0 for array in packed.values())
    assert weights_and_count(packed) == (weights, 3)
    assert weights_and_count(None) == (None, 0)


def test_a_piece_has_as_many_rows_of_each_device():
    first = rows({"ids": np.arange(8).reshape(8, 1), "none": None}, 0, 1, devices=4)
    np.testing.assert_array_equal(first["ids"], [[0], [2], [4], [6]])
    assert first["none"] is None
    np.testing.assert_array_equal(rows(np.arange(8), 2, 5), [2, 3, 4])


def test_validation_split_keeps_the_last_rows():
    (x, y), (held_x, held_y) = split_rows((np.arange(10), None), 0.25)
    assert (x.tolist(), held_x.tolist(), y, held_y) == ([*range(7)], [7, 8, 9], None, None)
    with pytest.raises(ValueError, match=r"Received: validation_split=0.5 of 1 rows"):
        split_rows(np.arange(1), 0.5)
    with pytest.raises(ValueError, match=r"validation_split needs arrays.*Received: list_iter"):
        split_rows(iter([1, 2]), 0.5)
