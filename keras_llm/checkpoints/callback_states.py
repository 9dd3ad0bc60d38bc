"""What callbacks remember from one call to the next."""

import collections
import hashlib
import json
from typing import Any

import keras

from keras_llm.backend.keras_private import choose_direction
from keras_llm.checkpoints.state_tree import is_plain, pack
from keras_llm.checkpoints.tensor_file import to_bytes

# What Keras gives every callback.
GIVEN = ("params", "_model", "validation_data")


class CallbackStates:
    """The states of the callbacks of a run.

    One with `state_dict()` and `load_state_dict(state)` has its own, and one of ours without has
    none. Of any other, such as Keras's `EarlyStopping`, the state is those of its attributes that
    have changed since the run began, as far as they are numbers, texts, arrays, None, or lists and
    dictionaries of these. Callbacks inside of a callback, as in `Evaluation`, are asked too.

    Args:
        callbacks: The callbacks, before `fit` begins.
    """

    def __init__(self, callbacks):
        inner = [c for outer in callbacks for c in inner_callbacks(outer)]
        every = {id(c): c for c in (*callbacks, *inner)}.values()
        self.callbacks = [c for c in every if has_own_state(c) or not is_ours(c)]
        self._made = self._begun = self._digests()

    def training_begins(self) -> None:
        """Notes what the callbacks have set up in their `on_train_begin`."""
        self._begun = self._digests()

    def state_dict(self) -> list[dict[str, Any]]:
        """The class and the state of each."""
        return [
            {"class": class_name(callback), "state": state_of(callback, made, begun)}
            for callback, made, begun in zip(self.callbacks, self._made, self._begun, strict=True)
        ]

    def load_state_dict(self, states: list[dict[str, Any]]) -> list[str]:
        """Takes what `state_dict` returned; each callback takes the next state of its class.

        Returns:
            The classes of which a state is left that no callback has taken.
        """
        waiting = collections.defaultdict(list)
        for each in states:
            waiting[each["class"]].append(each["state"])
        for callback in self.callbacks:
            if not (mine := waiting[class_name(callback)]):
                continue
            state = mine.pop(0)
            if has_own_state(callback):
                callback.load_state_dict(state)
            else:
                choose_direction(callback)
                vars(callback).update(state)
        return [name for name, left in waiting.items() if any(left)]

    def _digests(self):
        return [
            {name: digest(value) for name, value in plain_attributes(callback).items()}
            for callback in self.callbacks
        ]


def class_name(callback) -> str:
    """The class of a callback, as people import it."""
    return f"{type(callback).__module__}.{type(callback).__qualname__}"


def has_own_state(callback) -> bool:
    """Whether a callback says itself what its state is."""
    return hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict")


def inner_callbacks(callback) -> list:
    """The callbacks that a callback calls itself."""
    inner = getattr(callback, "callbacks", None)
    return list(inner) if isinstance(inner, list | tuple) else []


def is_ours(callback) -> bool:
    """Whether its state would be its own affair: also Keras's progress bar starts anew."""
    is_bar = isinstance(callback, keras.callbacks.ProgbarLogger)
    return is_bar or type(callback).__module__.split(".")[0] == __package__.split(".")[0]


def plain_attributes(callback) -> dict[str, Any]:
    """The attributes of a callback that a checkpoint can hold."""
    if has_own_state(callback):
        return {}
    return {k: v for k, v in vars(callback).items() if k not in GIVEN and is_plain(v)}


def state_of(callback, made: dict, begun: dict) -> dict[str, Any]:
    """The state of a callback.

    Args:
        callback: The callback.
        made, begun: The digests of its attributes before `fit`, and after its `on_train_begin`.
            What has never changed is how it was made, which its arguments say.
    """
    if has_own_state(callback):
        return callback.state_dict()
    return {
        name: value
        for name, value in plain_attributes(callback).items()
        if {digest(value)} != {made.get(name), begun.get(name)}
    }


def digest(value) -> str:
    """A hash of a plain value, which may be large."""
    packed, arrays = pack(value)
    return hashlib.sha256(json.dumps(packed).encode() + to_bytes(arrays)).hexdigest()
