"""The arguments that come from Keras's own optimizers do what they do there."""

import keras
import numpy as np
import pytest
import torch

from keras_llm import optimizers
from tests.optimizers.updates import (
    RATE,
    SHAPES,
    apply,
    as_arrays,
    as_variables,
    assert_close,
    gradients,
    torch_adamw,
    updated,
    updated_by_torch,
    values,
)

EACH = pytest.mark.parametrize("cls", [optimizers.AdamW, optimizers.Adafactor])


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    # PyTorch adds 1e-6 to the norm, which in float64 is seen.
    "dtype, atol",
    [("float32", 5e-6), pytest.param("float64", 1e-7, marks=pytest.mark.not_jax)],
)
@pytest.mark.parametrize("max_norm", [1.0, 10.0])
@pytest.mark.sampled(3)
def test_global_clipnorm(max_norm, dtype, atol):
    def clip(parameters):
        torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)

    norms = [np.sqrt(sum((g**2).sum() for g in step.values())) for step in gradients()]
    assert min(norms) < max_norm < max(norms)
    assert_close(
        updated(optimizers.AdamW(RATE, global_clipnorm=max_norm), gradients(), dtype),
        updated_by_torch(torch_adamw(), gradients(), each_step=clip),
        atol,
    )


@pytest.mark.usefixtures("each_way")
def test_clipnorm():
    def clip(parameters):
        for parameter in parameters:
            torch.nn.utils.clip_grad_norm_(parameter, 0.5)

    assert_close(
        updated(optimizers.AdamW(RATE, clipnorm=0.5), gradients()),
        updated_by_torch(torch_adamw(), gradients(), each_step=clip),
        atol=5e-6,
    )


@pytest.mark.usefixtures("each_way")
def test_clipvalue():
    def clip(parameters):
        torch.nn.utils.clip_grad_value_(list(parameters), 0.5)

    assert_close(
        updated(optimizers.AdamW(RATE, clipvalue=0.5), gradients()),
        updated_by_torch(torch_adamw(), gradients(), each_step=clip),
        atol=2e-6,
    )


def test_the_global_norm_of_bfloat16_gradients_is_that_of_float32():
    """In bfloat16 the squares of 10,000 ones add up to 256, and the norm to 16 instead of 100."""
    variable = keras.Variable(np.zeros(10_000), dtype="bfloat16")
    other = keras.Variable(np.zeros(()), dtype="bfloat16")
    optimizer = optimizers.AdamW(1.0, beta_1=0.0, epsilon=1.0, global_clipnorm=1.0)
    gradient = [keras.ops.ones(10_000, "bfloat16"), keras.ops.zeros((), "bfloat16")]
    optimizer.apply(gradient, [variable, other])
    # g / (g + epsilon), with g clipped to 1 / 100.
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(variable).astype("float64"), -0.01 / 1.01, rtol=2**-8
    )


@EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.sampled(3)
def test_accumulated_micro_steps_are_one_update_by_their_mean(cls, dtype):
    micro_steps = gradients(8)
    means = [
        {name: sum(step[name] for step in micro_steps[i : i + 4]) / 4 for name in SHAPES}
        for i in (0, 4)
    ]
    optimizer = cls(gradient_accumulation_steps=4, global_clipnorm=1.0)
    ours = updated(optimizer, micro_steps, dtype)
    assert int(optimizer.iterations) == 2
    once_each = as_variables(values(), dtype)
    plain = cls(global_clipnorm=1.0)
    for mean in means:
        # In float32 also for bfloat16 variables, so that the mean is not rounded.
        plain.apply(
            [keras.ops.convert_to_tensor(mean[name], "float32") for name in SHAPES],
            list(once_each.values()),
        )
    assert_close(ours, as_arrays(once_each), atol=1e-6)


@EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.sampled(3)
def test_exponential_moving_average(cls, dtype):
    optimizer = cls(weight_decay=0.1, use_ema=True, ema_momentum=0.5)
    variables = as_variables(values(), dtype)
    average = None
    for step in gradients(5):
        apply(optimizer, variables, step)
        now = as_arrays(variables)
        average = now if average is None else {n: (average[n] + now[n]) / 2 for n in SHAPES}
    optimizer.finalize_variable_values(list(variables.values()))
    rounding = 2**-9 * max(np.abs(a).max() for a in average.values())
    assert_close(as_arrays(variables), average, atol=1e-6 if dtype == "float32" else rounding)


@EACH
@pytest.mark.sampled(2)
def test_ema_overwrite_frequency(cls):
    optimizer = cls(use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    variables = as_variables(values())
    first, second = gradients(2)
    apply(optimizer, variables, first)
    average = as_arrays(variables)
    apply(optimizer, variables, second)

    alone = cls()
    same = as_variables(values())
    apply(alone, same, first)
    apply(alone, same, second)
    last = as_arrays(same)
    expected = {name: (average[name] + last[name]) / 2 for name in SHAPES}
    assert_close(as_arrays(variables), expected, atol=1e-6)


@EACH
@pytest.mark.sampled(2)
def test_loss_scale_factor(cls):
    optimizer = cls(loss_scale_factor=1024.0)
    assert float(optimizer.scale_loss(2.0)) == 2048.0
    scaled = [{name: 1024 * g for name, g in step.items()} for step in gradients(3)]
    assert_close(updated(optimizer, scaled), updated(cls(), gradients(3)), atol=0)


@EACH
@pytest.mark.sampled(2)
def test_dynamic_loss_scaling(cls):
    inner = cls()
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    scaled = [{name: 1024 * g for name, g in step.items()} for step in gradients(6)]
    overflow = {name: np.full(shape, np.inf) for name, shape in SHAPES.items()}
    ours = updated(optimizer, [*scaled, overflow])
    assert_close(ours, updated(cls(), gradients(6)), atol=1e-7)
    assert int(inner.iterations) == 6


@EACH
@pytest.mark.sampled(2)
def test_a_missing_gradient_leaves_its_variable_alone(cls):
    optimizer = cls()
    variables = as_variables(values())
    (step,) = gradients(1)
    tensors = [keras.ops.convert_to_tensor(step[name], "float32") for name in SHAPES]
    tensors[0] = None
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        optimizer.apply(tensors, list(variables.values()))
    everything = updated(cls(), [step])
    expected = everything | {"kernel": values()["kernel"]}
    assert_close(as_arrays(variables), expected, atol=1e-7)


@pytest.mark.backend_free
def test_unknown_arguments():
    with pytest.raises(ValueError, match="amsgrad"):
        optimizers.AdamW(amsgrad=True)


@EACH
@pytest.mark.backend_free
def test_config_round_trip(cls):
    arguments = {
        optimizers.AdamW: {"learning_rate": 0.5, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-6},
        optimizers.Adafactor: {
            "warmup_init": True,
            "scale_parameter": False,
            "beta_1": 0.8,
            "beta_2_decay": -0.5,
            "epsilon_1": 1e-20,
            "epsilon_2": 1e-2,
            "clip_threshold": 2.0,
        },
    }[cls]
    arguments |= {
        "weight_decay": 0.1,
        "decay_vectors": True,
        "exclude_from_weight_decay": ["embedding"],
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 3,
        "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 4,
        "name": "mine",
    }
    optimizer = cls(**arguments)
    config = optimizer.get_config()
    assert {name: config[name] for name in arguments} == arguments
    serialize = keras.optimizers.serialize
    again = keras.optimizers.deserialize(serialize(optimizer))
    assert type(again) is cls
    assert again.get_config() == config
    assert set(dir(again)) == set(dir(optimizer))


@pytest.mark.backend_free
def test_adafactor_config_with_and_without_a_learning_rate():
    assert optimizers.Adafactor().get_config()["learning_rate"] is None
    config = optimizers.Adafactor(0.5, relative_step=False).get_config()
    assert config["learning_rate"] == 0.5
    assert float(optimizers.Adafactor.from_config(config).learning_rate) == 0.5


@EACH
@pytest.mark.not_tensorflow
def test_stateless_apply_between_updates_touches_nothing(cls):
    def copies(variables):
        return [keras.ops.copy(variable.value) for variable in variables]

    optimizer = cls(weight_decay=0.1)
    variables = as_variables(values())
    first, second = gradients(2)
    apply(optimizer, variables, first)
    before = as_arrays(variables)
    new, state = optimizer.stateless_apply(
        copies(optimizer.variables),
        [keras.ops.convert_to_tensor(second[name], "float32") for name in SHAPES],
        copies(variables.values()),
    )
    assert_close(as_arrays(variables), before, atol=0)
    assert int(optimizer.iterations) == 1
    apply(optimizer, variables, second)
    assert_close(as_arrays(variables), as_arrays(dict(zip(SHAPES, new, strict=True))), atol=1e-7)
    for ours, stateless in zip(optimizer.variables, state, strict=True):
        np.testing.assert_allclose(ours.numpy(), np.asarray(stateless), rtol=1e-6, atol=1e-30)
