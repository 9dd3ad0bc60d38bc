"""What callbacks remember, also those that know nothing of checkpoints."""

import keras
import numpy as np
import pytest

from keras_llm import callbacks
from keras_llm.checkpoints.callback_states import CallbackStates

pytestmark = pytest.mark.backend_free


def changed(callback):
    """An `EarlyStopping` in the middle of its patience."""
    callback.on_train_begin()
    callback.wait, callback.best = 2, np.float64(0.5)
    callback.best_weights = [np.ones(2, "float32")]


def test_the_attributes_that_have_changed_are_the_state():
    callback = keras.callbacks.EarlyStopping("loss", patience=3, mode="min")
    states = CallbackStates([callback])
    callback.on_train_begin()
    states.training_begins()
    changed(callback)
    [state] = states.state_dict()
    assert state["class"].endswith("EarlyStopping")
    assert {"wait", "best", "best_weights"} <= set(state["state"])
    assert not {"patience", "monitor", "params"} & set(state["state"])

    other = keras.callbacks.EarlyStopping("loss", patience=7, mode="min")
    assert CallbackStates([other]).load_state_dict([state]) == []
    assert (other.wait, other.best, other.patience) == (2, 0.5, 7)
    np.testing.assert_array_equal(other.best_weights, [np.ones(2)])


def test_what_is_as_it_was_made_but_not_as_training_set_it_is_kept():
    class Turns(keras.callbacks.Callback):
        turn = 0

        def __init__(self):
            super().__init__()
            self.turn = 0

        def on_train_begin(self, logs=None):
            self.turn = 5

    callback = Turns()
    states = CallbackStates([callback])
    callback.on_train_begin()
    states.training_begins()
    callback.turn = 0
    [state] = states.state_dict()
    assert state["state"] == {"turn": 0}


def test_callbacks_of_one_class_keep_their_order_and_the_rest_is_named():
    def three():
        return [keras.callbacks.EarlyStopping("loss", mode="min") for _ in range(3)]

    made = three()
    states = CallbackStates(made)
    for number, callback in enumerate(made, start=1):
        callback.wait = number
    saved = states.state_dict()
    fewer = three()[:2]
    left = CallbackStates(fewer).load_state_dict(saved)
    assert [callback.wait for callback in fewer] == [1, 2]
    assert len(left) == 1 and left[0].endswith("EarlyStopping")


def test_callbacks_inside_of_an_evaluation_are_asked():
    inner = keras.callbacks.EarlyStopping("val_loss", mode="min")
    states = CallbackStates([callbacks.Evaluation((np.ones(1), np.ones(1)), 3, callbacks=[inner])])
    inner.wait = 4
    saved = states.state_dict()
    again = keras.callbacks.EarlyStopping("val_loss", mode="min")
    CallbackStates(
        [callbacks.Evaluation((np.ones(1), np.ones(1)), 3, callbacks=[again])]
    ).load_state_dict(saved)
    assert again.wait == 4


def test_ours_say_themselves_what_their_state_is(tmp_path):
    assert CallbackStates([callbacks.JSONLines(tmp_path / "log")]).state_dict() == []
