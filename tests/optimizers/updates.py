"""The same updates by one of our optimizers and by one of PyTorch's."""

import keras
import ml_dtypes
import numpy as np
import torch

# A power of two, so that float32 holds it exactly.
RATE = 2.0**-7
UPDATES = 50
SHAPES = {
    "kernel": (11, 6),
    "attention": (2, 3, 4),
    "column": (5, 1),
    "bias": (4,),
    "temperature": (),
}
MATRICES = ("kernel", "attention", "column")


def normal(rng, shape, low, high):
    """Normal numbers that all dtypes hold exactly, of a size between 10^low and 10^high."""
    numbers = rng.normal(size=shape) * 10 ** rng.uniform(low, high)
    return np.asarray(numbers, ml_dtypes.bfloat16).astype("float64")


def values():
    """Where the variables start."""
    rng = np.random.default_rng(0)
    return {name: normal(rng, shape, -2, 0) for name, shape in SHAPES.items()}


def gradients(updates=UPDATES):
    """The gradients of each update; a row and a column of one matrix have none."""
    rng = np.random.default_rng(1)
    steps = []
    for _ in range(updates):
        step = {name: normal(rng, shape, -4, 1) for name, shape in SHAPES.items()}
        step["kernel"][rng.integers(11)] = 0
        step["kernel"][:, rng.integers(6)] = 0
        steps.append(step)
    return steps


def as_variables(arrays, dtype="float32"):
    """Keras variables, by name."""
    return {name: keras.Variable(array, dtype=dtype, name=name) for name, array in arrays.items()}


def as_arrays(variables):
    """What the variables hold, in float64."""
    return {
        name: keras.ops.convert_to_numpy(variable).astype("float64")
        for name, variable in variables.items()
    }


def apply(optimizer, variables, *steps):
    """Updates the variables once for each of the steps, by gradients of the variables' dtype."""
    optimizer.build(list(variables.values()))
    update = optimizer.apply
    if len(steps) > 5:
        update = compiled_update(optimizer, list(variables.values()))
    for gradients in steps:
        update([keras.ops.convert_to_tensor(gradients[n], v.dtype) for n, v in variables.items()])


def compiled_update(optimizer, variables):
    """The update as `fit` runs it: on JAX and TensorFlow as a graph, worth it for many steps."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        return tensorflow.function(optimizer.apply)
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(optimizer.stateless_apply)

        def update(gradients):
            state = optimizer.variables
            new = compiled([v.value for v in state], gradients, [v.value for v in variables])
            for variable, value in zip([*variables, *state], [*new[0], *new[1]], strict=True):
                variable.assign(value)

        return update
    return optimizer.apply


def updated(optimizer, gradients, dtype="float32"):
    """The values after all updates by a Keras optimizer."""
    variables = as_variables(values(), dtype)
    apply(optimizer, variables, *gradients)
    return as_arrays(variables)


def updated_by_torch(make_optimizer, gradients, dtype=torch.float64, each_step=None):
    """The values after all updates by a PyTorch optimizer, in float64 unless asked otherwise.

    Args:
        make_optimizer: From the parameters by name to an optimizer and a scheduler, or None.
        gradients: The gradients of each update.
        dtype: Of the parameters.
        each_step: Called with the parameters, and their gradients, before each update.
    """
    parameters = {n: torch.nn.Parameter(torch.tensor(a, dtype=dtype)) for n, a in values().items()}
    optimizer, scheduler = make_optimizer(parameters)
    for step in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(step[name], dtype=dtype)
        if each_step is not None:
            each_step(parameters.values())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return {name: parameter.detach().double().numpy() for name, parameter in parameters.items()}


def torch_adamw(decayed=MATRICES, weight_decay=0.01, schedule=None, **arguments):
    """Makes PyTorch's AdamW with two groups, those in `decayed` and the others."""

    def make(parameters):
        groups = [
            {"params": [parameters[name] for name in SHAPES if name in decayed]},
            {
                "params": [parameters[name] for name in SHAPES if name not in decayed],
                "weight_decay": 0.0,
            },
        ]
        optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=weight_decay, **arguments)
        return optimizer, schedule and schedule(optimizer)

    return make


def assert_close(ours, theirs, atol):
    """No element differs by more than `atol`."""
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=0, atol=atol, err_msg=name)
