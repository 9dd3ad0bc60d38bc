"""Adafactor's updates are those of transformers.optimization.Adafactor."""

import itertools

import keras
import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor as HuggingFaceAdafactor

from keras_llm import optimizers
from tests.optimizers.updates import (
    MATRICES,
    SHAPES,
    apply,
    as_arrays,
    as_variables,
    assert_close,
    gradients,
    updated,
    updated_by_torch,
)

RATE = 2.0**-7
FLAGS = [
    {name: value for flag in flags for name, value in flag.items()}
    for flags in itertools.product(
        [{}, {"warmup_init": True}, {"learning_rate": RATE, "relative_step": False}],
        [{}, {"scale_parameter": False}],
        [{}, {"beta_1": 0.9}],
        [{}, {"weight_decay": 0.1}],
    )
]
OTHERS = [
    {"beta_2_decay": -0.5, "clip_threshold": 0.3},
    {"epsilon_1": 1e-3, "epsilon_2": 0.5},
]


def hugging_face(**arguments):
    """Makes Hugging Face's, which decays all variables, from our arguments."""
    their_names = {"learning_rate": "lr", "beta_1": "beta1", "beta_2_decay": "decay_rate"}
    arguments = {their_names.get(name, name): value for name, value in arguments.items()}
    arguments["eps"] = arguments.pop("epsilon_1", 1e-30), arguments.pop("epsilon_2", 1e-3)
    return lambda parameters: (HuggingFaceAdafactor(parameters.values(), **arguments), None)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("arguments", FLAGS + OTHERS, ids=lambda a: ", ".join(a) or "defaults")
@pytest.mark.sampled(5)
@pytest.mark.quick(7)
def test_fifty_updates(arguments):
    assert_close(
        updated(optimizers.Adafactor(**arguments, decay_vectors=True), gradients()),
        updated_by_torch(hugging_face(**arguments), gradients()),
        atol=2e-6,
    )


@pytest.mark.usefixtures("each_way")
def test_bfloat16_variables():
    ours = updated(optimizers.Adafactor(beta_1=0.9), gradients(), "bfloat16")
    theirs = updated_by_torch(hugging_face(beta_1=0.9), gradients(), torch.bfloat16)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)


@pytest.mark.usefixtures("each_way")
def test_vectors_and_exclusions_do_not_decay():
    arguments = {"learning_rate": RATE, "relative_step": False, "scale_parameter": False}
    ours = updated(
        optimizers.Adafactor(**arguments, weight_decay=0.1, exclude_from_weight_decay=["kernel"]),
        gradients(),
    )
    decayed, plain = (
        updated_by_torch(hugging_face(**arguments, weight_decay=weight_decay), gradients())
        for weight_decay in (0.1, 0.0)
    )
    theirs = {
        name: (decayed if name in MATRICES and name != "kernel" else plain)[name] for name in SHAPES
    }
    assert_close(ours, theirs, atol=2e-6)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("size", [1e-18, 1.0, 1e10])
def test_dead_rows_and_columns_stay_where_they_are(size):
    gradient = size * np.random.default_rng(0).normal(size=(4, 5))
    gradient[1], gradient[:, 2] = 0, 0
    optimizer = optimizers.Adafactor(scale_parameter=False)
    variables = as_variables({"kernel": np.ones((4, 5))})
    apply(optimizer, variables, *[{"kernel": gradient}] * 3)
    kernel = as_arrays(variables)["kernel"]
    assert np.isfinite(kernel).all()
    np.testing.assert_array_equal(kernel == 1, gradient == 0)


@pytest.mark.backend_free
def test_state_is_a_fiftieth_of_adamws_or_less():
    """On 30 million parameters: embedding, blocks of attention and feed-forward, norms, biases."""
    shapes = [(30_522, 512), *[(512, 2048), (2048, 512)] * 4, *[(512, 512)] * 16]
    shapes += [(512,)] * 40 + [(2048,)] * 4
    variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
    assert 25e6 < sum(np.prod(shape) for shape in shapes) < 35e6

    def state(optimizer):
        optimizer.build(variables)
        return sum(np.prod(variable.shape) for variable in optimizer.variables)

    assert state(optimizers.Adafactor()) <= 0.02 * state(optimizers.AdamW())


def test_the_learning_rate_is_the_current_relative_step():
    for warmup_init in (False, True):
        optimizer = optimizers.Adafactor(warmup_init=warmup_init)
        variables = as_variables({"bias": np.zeros(3)})
        for t in range(1, 4):
            expected = min(1e-6 * t if warmup_init else 1e-2, t**-0.5)
            np.testing.assert_allclose(float(optimizer.learning_rate), expected, rtol=1e-6)
            apply(optimizer, variables, {"bias": np.ones(3)})


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"learning_rate": 1e-3}, "relative_step=False"),
        ({"relative_step": False}, "needs a learning_rate"),
        (
            {"learning_rate": 1e-3, "relative_step": False, "warmup_init": True},
            "needs relative_step=True",
        ),
        ({"beta_1": 1.0}, "beta_1=1.0"),
        ({"beta_2_decay": 0.8}, "beta_2_decay=0.8"),
        ({"epsilon_1": -1e-30}, "epsilon_1=-1e-30"),
        ({"epsilon_2": -1}, "epsilon_2=-1"),
        ({"clip_threshold": 0.0}, "clip_threshold=0.0"),
    ],
)
@pytest.mark.backend_free
def test_values_that_contradict_each_other_or_are_out_of_range(arguments, says):
    with pytest.raises(ValueError, match=says):
        optimizers.Adafactor(**arguments)


@pytest.mark.parametrize("name", ["lr", "eps", "beta1", "decay_rate"])
@pytest.mark.backend_free
def test_names_from_elsewhere(name):
    with pytest.raises(TypeError, match=rf"no argument {name}; write .* Received: {name}=0.5"):
        optimizers.Adafactor(**{name: 0.5})


@pytest.mark.backend_free
def test_assigning_a_learning_rate_needs_relative_step_off():
    with pytest.raises(ValueError, match="relative_step=False"):
        optimizers.Adafactor().learning_rate = 1e-3
    optimizer = optimizers.Adafactor(1e-2, relative_step=False)
    optimizer.learning_rate = 1e-3
    assert float(optimizer.learning_rate) == pytest.approx(1e-3)
