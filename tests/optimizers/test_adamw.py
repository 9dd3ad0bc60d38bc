"""AdamW's updates are those of torch.optim.AdamW."""

import keras
import numpy as np
import pytest
import torch
import transformers

from keras_llm import optimizers, schedules
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


def moments(optimizer):
    """m and v of all variables."""
    return [v for v in optimizer.variables if v.path.endswith(("momentum", "velocity"))]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "dtype, atol", [("float32", 2e-6), pytest.param("float64", 1e-8, marks=pytest.mark.not_jax)]
)
@pytest.mark.parametrize(
    "ours, theirs",
    [
        ({}, {}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
        ({"weight_decay": None}, {"weight_decay": 0.0}),
        ({"beta_1": 0.0, "beta_2": 0.95}, {"betas": (0.0, 0.95)}),
        ({"epsilon": 1e-2}, {"eps": 1e-2}),
        ({"decay_vectors": True}, {"decayed": tuple(SHAPES)}),
        ({"exclude_from_weight_decay": "kern"}, {"decayed": ("attention", "column")}),
        ({"exclude_from_weight_decay": ["^k", "on$"]}, {"decayed": ("column",)}),
    ],
    ids=lambda arguments: ", ".join(arguments) or "defaults",
)
@pytest.mark.sampled(3)
@pytest.mark.quick(5)
def test_fifty_updates(ours, theirs, dtype, atol):
    assert_close(
        updated(optimizers.AdamW(RATE, **ours), gradients(), dtype),
        updated_by_torch(torch_adamw(**theirs), gradients()),
        atol,
    )


@pytest.mark.usefixtures("each_way")
def test_fifty_updates_with_a_schedule():
    def theirs(optimizer):
        return transformers.get_cosine_schedule_with_warmup(optimizer, 10, 50)

    assert_close(
        updated(optimizers.AdamW(schedules.WarmupCosineDecay(RATE, 10, 50)), gradients()),
        updated_by_torch(torch_adamw(schedule=theirs), gradients()),
        atol=2e-6,
    )


@pytest.mark.usefixtures("each_way")
def test_bfloat16_rounds_the_variables_and_nothing_else():
    def round_parameters(parameters):
        for parameter in parameters:
            parameter.data = parameter.data.bfloat16().float()

    ours = updated(optimizers.AdamW(RATE), gradients(), "bfloat16")
    theirs = updated_by_torch(torch_adamw(), gradients(), torch.float32, each_step=round_parameters)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], torch.tensor(array).bfloat16().double(), name)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_variables_move_and_have_float32_state(dtype):
    optimizer = optimizers.AdamW(2.0**-6, weight_decay=0.0)
    variables = as_variables({"kernel": np.ones((3, 2))}, dtype)
    apply(optimizer, variables, *[{"kernel": np.full((3, 2), 0.01)}] * 20)
    # By the learning rate in each update, where the gradient is constant.
    np.testing.assert_array_equal(as_arrays(variables)["kernel"], 1 - 20 * 2.0**-6)
    assert variables["kernel"].dtype == dtype
    assert {v.dtype for v in moments(optimizer)} == {"float32"}


@pytest.mark.not_jax
def test_the_state_of_float64_variables_is_float64():
    optimizer = optimizers.AdamW()
    optimizer.build(list(as_variables(values(), "float64").values()))
    assert len(moments(optimizer)) == 2 * len(SHAPES)
    assert {v.dtype for v in moments(optimizer)} == {"float64"}


@pytest.mark.torch_only
@pytest.mark.parametrize("what", ["gradients", "variables"])
def test_transposed_memory(what):
    def transposed(array):
        tensor = torch.tensor(array, dtype=torch.float32)
        return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor

    if what == "variables":
        variables = {
            name: keras.Variable(torch.nn.Parameter(transposed(array)), name=name)
            for name, array in values().items()
        }
        assert not variables["kernel"].value.is_contiguous()
    else:
        variables = as_variables(values())
    optimizer = optimizers.AdamW(RATE)
    for step in gradients():
        as_tensor = transposed if what == "gradients" else torch.tensor
        optimizer.apply([as_tensor(step[name]).float() for name in SHAPES], variables.values())
    theirs = updated_by_torch(torch_adamw(), gradients())
    assert_close(as_arrays(variables), theirs, atol=2e-6)
