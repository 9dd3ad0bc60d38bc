"""If one of these fails after an upgrade, Keras has moved what `keras_private` relies on."""

import keras
import numpy as np
import pytest

from keras_llm import explain, losses
from keras_llm.backend.keras_private import (
    all_layers,
    batches_through,
    built_with,
    compile_arguments,
    is_cast_for,
    keras_decays,
    keras_mask,
    known_names,
    loss_setting,
    made_from,
    optimizer_settings,
    with_keras_mask,
)


def test_masking_layers_hang_their_mask_on_the_tensor():
    ids = np.array([[1, 2, 0]])
    masked = keras.layers.Embedding(3, 4, mask_zero=True)(ids)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras_mask(masked)), ids != 0)
    assert keras_mask(keras.layers.Embedding(3, 4)(ids)) is None
    again = with_keras_mask(masked + 1.0, keras_mask(masked))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras_mask(again)), ids != 0)


def test_a_mask_is_seen_in_a_compiled_step():
    model = keras.Sequential([keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dense(5)])
    ids, labels = np.array([[1, 2, 0, 0]]), np.array([[3, 4, 1, 2]])
    logits = keras.ops.convert_to_numpy(model(ids)).astype("float64")[0]
    nll = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), labels[0]]
    model.compile(loss=losses.MaskedSparseCategoricalCrossentropy(-100))
    assert model.evaluate(ids, labels, verbose=0) == pytest.approx(nll[:2].mean(), rel=1e-5)


class OfKeras316(keras.losses.Loss):
    """As there, its settings are in its config only."""

    def call(self, y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    def get_config(self):
        return {**super().get_config(), "from_logits": True, "ignore_class": 0}


def test_the_settings_of_a_loss_are_found():
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    ours = losses.MaskedSparseCategoricalCrossentropy(0)
    for loss in (stock, OfKeras316()):
        assert (loss_setting(loss, "from_logits"), loss_setting(loss, "ignore_class")) == (True, 0)
    assert (loss_setting(ours, "from_logits"), loss_setting(ours, "ignore_class")) == (True, None)
    assert loss_setting(lambda y_true, y_pred: 0.0, "from_logits") is None
    model = keras.Sequential([keras.layers.Embedding(5, 4), keras.layers.Dense(5)])
    model.compile(loss=OfKeras316())
    assert explain(model, show=False)["Loss"]["left out"].value == 0


def test_how_a_tensor_was_made():
    inputs, scale = keras.Input((3,)), keras.layers.Rescaling(2.0)
    made = made_from(keras.ops.add(scale(inputs), 1.0))
    assert type(made.operation).__name__ == "Add" and len(made.inputs) == 1
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(made.again(np.ones(3))), 2 * np.ones(3)
    )
    [before] = made.inputs
    assert made_from(before).operation is scale and made_from(before).inputs[0] is inputs


@pytest.mark.backend_free
def test_which_variables_a_layer_casts():
    dense = keras.layers.Dense(2, dtype="mixed_bfloat16")
    norm = keras.layers.LayerNormalization(dtype="mixed_bfloat16")
    for layer in (dense, norm):
        layer.build((None, 3))
    assert is_cast_for(dense.kernel, dense)
    assert not is_cast_for(norm.gamma, norm)


@pytest.mark.backend_free
def test_layers_inside_layers_are_found():
    inner = keras.layers.Dense(2)
    outer = keras.Sequential([keras.Sequential([inner])])
    assert any(layer is inner for layer in all_layers(outer))
    assert any(layer is outer for layer in all_layers(outer))


@pytest.mark.parametrize("kind, name", [("losses", "mean_squared_error"), ("metrics", "accuracy")])
@pytest.mark.backend_free
def test_keras_looks_strings_up_in_the_table(kind, name):
    assert name in known_names(kind)
    known_names(kind)["a_name_of_ours"] = dict
    try:
        assert getattr(keras, kind).get("a_name_of_ours") == {}
    finally:
        del known_names(kind)["a_name_of_ours"]


@pytest.mark.backend_free
def test_the_arguments_of_compile_are_kept():
    model = keras.Sequential([keras.layers.Dense(2)])
    metric = keras.metrics.MeanSquaredError()
    model.compile(loss="mse", metrics=[metric], loss_weights=2.0)
    arguments = compile_arguments(model)
    assert (arguments["loss"], arguments["loss_weights"]) == ("mse", 2.0)
    assert arguments["metrics"] == [metric]
    assert arguments["weighted_metrics"] is None


def test_an_optimizer_of_keras_tells_what_it_decays():
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    assert keras_decays(optimizer, dense.bias)
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert not keras_decays(optimizer, dense.bias)
    assert keras_decays(optimizer, dense.kernel)


@pytest.mark.parametrize("kind", [keras.optimizers.AdamW, keras.optimizers.SGD])
@pytest.mark.backend_free
def test_the_settings_of_an_optimizer_are_those_of_its_config(kind):
    class Unserializable(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1e-3

        def get_config(self):
            raise AssertionError("the schedule was serialised")

    settings = optimizer_settings(kind(Unserializable(), clipnorm=2.0, name="a"))
    assert settings == kind(0.5, clipnorm=2.0, name="a").get_config()


@pytest.mark.not_torch
def test_batches_go_through_a_function_on_their_way():
    rows = np.arange(10.0).reshape(5, 2)
    options = {"batch_size": 2, "steps_per_epoch": None, "shuffle": False}

    def doubled(batches):
        if keras.backend.backend() == "tensorflow":
            return batches.map(lambda *batch: tuple(2.0 * array for array in batch))
        return (keras.tree.map_structure(lambda a: 2.0 * np.asarray(a), b) for b in batches)

    data = batches_through(doubled, (rows,), **options)
    same = keras.Sequential([keras.layers.Identity()])
    np.testing.assert_array_equal(same.predict(data, verbose=0), 2.0 * rows)


def test_an_optimizer_tells_what_it_was_built_with():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    optimizer = keras.optimizers.Adam()
    assert built_with(optimizer) == []
    optimizer.build(layer.trainable_variables[:1])
    assert [v is layer.kernel for v in built_with(optimizer)] == [True]
