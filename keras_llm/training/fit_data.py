"""What `fit` reads, in the form in which Keras is to take it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from keras_llm.backend.ops.device_rows import devices_of_rows
from keras_llm.training.arrays import (
    check_kind,
    has_rows,
    split_rows,
    three_parts,
    token_weights,
)
from keras_llm.training.fit_length import batches_in


def check_one_set(validation_data):
    """Raises `TypeError` for several sets by name, as Hugging Face's Trainer takes them."""
    if isinstance(validation_data, Mapping):
        raise TypeError(
            "validation_data must be one data set: (x, y), or a loader. Several are evaluated by "
            "callbacks.Evaluation(data, every_steps=..., name=...), one callback each. "
            f"Received: a dict with {list(validation_data)}"
        )


class FitData(NamedTuple):
    """What a `fit` reads.

    Attributes:
        given: `(x, y, sample_weight)` that is trained on.
        batches: Batches of an epoch; None where the data does not tell.
        taken: The same as Keras takes it.
        shuffle: Whether Keras shuffles it.
        validation_data: What Keras evaluates on.
        validation_split: The share of `taken` that Keras holds out.
    """

    given: tuple
    batches: int | None
    taken: tuple
    shuffle: Any
    validation_data: Any
    validation_split: float


def fit_data(
    model, given, validation_data, *, class_weight, batch_size, shuffle, validation_split, sizes
) -> FitData:
    """The data of a `fit`.

    Args:
        model: The `DataModel`.
        given: `x`, `y` and `sample_weight` of `fit`.
        validation_data, class_weight, batch_size, shuffle, validation_split: As of `fit`.
        sizes: Those of its arguments that `SIZES` names.
    """
    step, steps = model.step, sizes["steps_per_epoch"]
    # Keras splits arrays only, and batches that are filled up are none; and it would hold out the
    # weights of classes, which are of training.
    is_split = step is not None and validation_data is None and validation_split > 0
    is_split = is_split and (class_weight is not None or devices_of_rows() > 1)
    of_classes = None if is_split else class_weight
    given = model.prepared(*given, of_classes, batch_size, shuffle is not False)
    if shuffle is None:
        # Others have an order of their own, and Keras warns that it does not change it.
        shuffle = has_rows(given[0]) or getattr(given[0], "num_batches", None) is not None
    rows = sizes["validation_batch_size"] or batch_size
    if validation_data is not None:
        validation_split = 0.0
        is_read = keras.backend.backend() != "torch" or model.reader is not None
        if isinstance(validation_data, list) and model.reader is None:
            # A reader takes a list as its rows.
            validation_data = tuple(validation_data)
        elif not isinstance(validation_data, tuple):
            if model.reader is None:
                check_one_set(validation_data)
                check_kind(validation_data, "validation_data")
            if is_read:
                validation_data = (validation_data,)
    if isinstance(validation_data, tuple):
        held_out = three_parts(validation_data, "validation_data")
        validation_data = model.prepared(*held_out, batch_size=rows)
    elif is_split:
        (x, y, weights), validation_data = split_rows(given, validation_split)
        given = x, y, token_weights(step.loss, y, weights, class_weight)
        validation_split = 0.0
    batches = batches_in(given, batch_size, steps, validation_split)
    taken = given
    if step is not None and not validation_split:
        taken, shuffle = step.batches(given, batch_size, steps, shuffle)
    if step is not None and isinstance(validation_data, tuple):
        validation_data, _ = step.batches(validation_data, rows, sizes["validation_steps"], False)
    return FitData(given, batches, taken, shuffle, validation_data, validation_split)
