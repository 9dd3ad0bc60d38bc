"""Which variables decay, and that a save remembers it."""

import keras
import numpy as np
import pytest

from keras_llm import optimizers

EACH = pytest.mark.parametrize("cls", [optimizers.AdamW, optimizers.Adafactor])


def model():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 4, name="embedding"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.GRU(4, return_sequences=True, name="gru"),
            keras.layers.Dense(7, name="head"),
        ],
        name="lm",
    )


def decaying(optimizer, variables):
    return {v.path for v in variables if optimizer.decays(v)}


MATRICES = {
    "lm/embedding/embeddings",
    "lm/gru/gru_cell/kernel",
    "lm/gru/gru_cell/recurrent_kernel",
    "lm/head/kernel",
}


@EACH
@pytest.mark.parametrize(
    "arguments, left_out",
    [
        ({}, set()),
        ({"exclude_from_weight_decay": ["embedding", "^lm/head/kernel$"]}, {"embedding", "head"}),
        ({"exclude_from_weight_decay": "gru"}, {"gru"}),
    ],
    ids=str,
)
@pytest.mark.backend_free
def test_matrices_decay_and_biases_norms_and_exclusions_do_not(cls, arguments, left_out):
    variables = model().trainable_variables
    assert len(variables) == 8
    # A GRU's bias has two dimensions.
    assert [len(v.shape) for v in variables if v.path == "lm/gru/gru_cell/bias"] == [2]
    optimizer = cls(weight_decay=0.1, **arguments)
    expected = {path for path in MATRICES if path.split("/")[1] not in left_out}
    assert decaying(optimizer, variables) == expected


@EACH
@pytest.mark.backend_free
def test_all_decay_if_asked_and_none_without_weight_decay(cls):
    variables = model().trainable_variables
    everything = cls(weight_decay=0.1, decay_vectors=True)
    assert decaying(everything, variables) == {v.path for v in variables}
    assert decaying(cls(weight_decay=0.0, decay_vectors=True), variables) == set()
    assert decaying(cls(weight_decay=None), variables) == set()


@EACH
@pytest.mark.backend_free
def test_keras_method_takes_variables_and_names(cls):
    net = model()
    optimizer = cls(weight_decay=0.1, exclude_from_weight_decay=["head"])
    optimizer.exclude_from_weight_decay([net.get_layer("embedding").embeddings], ["recurrent"])
    assert decaying(optimizer, net.trainable_variables) == {"lm/gru/gru_cell/kernel"}
    again = cls.from_config(optimizer.get_config())
    assert decaying(again, net.trainable_variables) == {"lm/gru/gru_cell/kernel"}
    optimizer.build(net.trainable_variables)
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])


@pytest.mark.backend_free
def test_a_variable_is_no_pattern():
    variable = keras.Variable(np.ones((2, 2), "float32"))
    with pytest.raises(TypeError, match=r"call optimizer.exclude_from_weight_decay\(variables\)"):
        optimizers.AdamW(exclude_from_weight_decay=[variable])


@EACH
@pytest.mark.parametrize("loss_scaling", [False, True])
@pytest.mark.sampled(3)
def test_a_saved_model_remembers_what_does_not_decay(cls, loss_scaling, tmp_path):
    net = model()
    optimizer = cls(weight_decay=0.1, exclude_from_weight_decay=["^lm/gru/.*recurrent"])
    optimizer.exclude_from_weight_decay([net.get_layer("embedding").embeddings])
    outer = keras.optimizers.LossScaleOptimizer(optimizer) if loss_scaling else optimizer
    net.compile(outer, "sparse_categorical_crossentropy")
    outer.build(net.trainable_variables)
    assert decaying(optimizer, net.variables) == {"lm/gru/gru_cell/kernel", "lm/head/kernel"}
    net.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    # Keras drops the model's name from the paths, which neither exclusion matches now.
    expected = {"gru/gru_cell/kernel", "head/kernel"}
    inner = loaded.optimizer.inner_optimizer if loss_scaling else loaded.optimizer
    assert decaying(inner, loaded.trainable_variables) == expected


@EACH
def test_weight_decay_is_assignable_while_training(cls):
    optimizer = cls(weight_decay=0.0)
    variable = keras.Variable(np.ones((2, 2), "float32"))
    zeros = keras.ops.zeros((2, 2))
    optimizer.apply([zeros], [variable])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), 1)
    optimizer.weight_decay = 0.5
    rate = float(optimizer.learning_rate)
    optimizer.apply([zeros], [variable])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), 1 - rate * 0.5, rtol=1e-6)
