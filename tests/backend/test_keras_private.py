"""If one of these fails after an upgrade, Keras has moved what `keras_private` relies on."""

import keras
import numpy as np
import pytest

from keras_llm.backend.keras_private import all_layers, keras_mask, known_names


def test_masking_layers_hang_their_mask_on_the_tensor():
    ids = np.array([[1, 2, 0]])
    masked = keras.layers.Embedding(3, 4, mask_zero=True)(ids)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras_mask(masked)), ids != 0)
    assert keras_mask(keras.layers.Embedding(3, 4)(ids)) is None


def test_layers_inside_layers_are_found():
    inner = keras.layers.Dense(2)
    outer = keras.Sequential([keras.Sequential([inner])])
    assert any(layer is inner for layer in all_layers(outer))
    assert any(layer is outer for layer in all_layers(outer))


@pytest.mark.parametrize("kind, name", [("losses", "mean_squared_error"), ("metrics", "accuracy")])
def test_keras_looks_strings_up_in_the_table(kind, name):
    assert name in known_names(kind)
    known_names(kind)["a_name_of_ours"] = dict
    try:
        assert getattr(keras, kind).get("a_name_of_ours") == {}
    finally:
        del known_names(kind)["a_name_of_ours"]
