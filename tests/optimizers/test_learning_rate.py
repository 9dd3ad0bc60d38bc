"""What a learning rate may be, and what it is at each update."""

import keras
import numpy as np
import pytest

from keras_llm import optimizers, schedules
from tests.optimizers.updates import apply, as_arrays, as_variables

ONE_STEP = {"kernel": np.ones((2, 2))}


def test_a_schedule_counts_updates_not_micro_steps():
    optimizer = optimizers.AdamW(
        schedules.WarmupConstant(1.0, 10), weight_decay=0.0, gradient_accumulation_steps=3
    )
    variables = as_variables({"kernel": np.zeros((2, 2))})
    rates = []
    for _ in range(9):
        rates.append(round(float(optimizer.learning_rate), 6))
        apply(optimizer, variables, ONE_STEP)
    assert rates == [0, 0, 0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2]
    # A constant gradient moves Adam by the learning rate: 0 and 0.1 and 0.2.
    np.testing.assert_allclose(as_arrays(variables)["kernel"], -0.3, rtol=1e-5)


def test_a_float_is_assignable_while_training():
    optimizer = optimizers.AdamW(0.5, weight_decay=0.0)
    variables = as_variables({"kernel": np.zeros((2, 2))})
    apply(optimizer, variables, ONE_STEP)
    optimizer.learning_rate = 0.25
    apply(optimizer, variables, ONE_STEP)
    np.testing.assert_allclose(as_arrays(variables)["kernel"], -0.75, rtol=1e-5)


def test_a_callable():
    optimizer = optimizers.AdamW(lambda: 0.5)
    assert optimizer.learning_rate == 0.5
    variables = as_variables({"kernel": np.zeros((2, 2))})
    apply(optimizer, variables, ONE_STEP)
    np.testing.assert_allclose(as_arrays(variables)["kernel"], -0.5, rtol=1e-5)


def test_keras_callbacks_set_it():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizers.AdamW(0.5), "mse")
    callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, callbacks=[callback], verbose=0)
    assert float(model.optimizer.learning_rate) == 0.125


@pytest.mark.parametrize(
    "rate, error, says",
    [
        (5, TypeError, "learning_rate=5e-5. Received: learning_rate=5"),
        (True, TypeError, "learning_rate=True"),
        ("5e-5", TypeError, "learning_rate='5e-5'"),
        (None, TypeError, "learning_rate=None"),
        (-1e-3, ValueError, "learning_rate=-0.001"),
        (float("nan"), ValueError, "learning_rate=nan"),
    ],
)
@pytest.mark.backend_free
def test_what_is_not_a_learning_rate(rate, error, says):
    with pytest.raises(error, match=says):
        optimizers.AdamW(rate)


@pytest.mark.backend_free
def test_numpy_floats_are_floats():
    assert float(optimizers.AdamW(np.float32(0.5)).learning_rate) == 0.5


@pytest.mark.parametrize(
    "name, write", [("lr", "learning_rate="), ("betas", "beta_1=.* beta_2="), ("eps", "epsilon=")]
)
@pytest.mark.backend_free
def test_pytorchs_names(name, write):
    with pytest.raises(TypeError, match=rf"AdamW has no argument {name}; write {write}"):
        optimizers.AdamW(**{name: 1e-3})


@pytest.mark.parametrize(
    "arguments",
    [{"beta_1": 1.0}, {"beta_2": -0.1}, {"epsilon": -1e-8}, {"weight_decay": -0.1}],
    ids=str,
)
@pytest.mark.backend_free
def test_values_out_of_range(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} must be .* Received: {name}={value}"):
        optimizers.AdamW(**arguments)
