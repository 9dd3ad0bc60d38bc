"""One training step, stage by stage, and then undone."""

import contextlib
import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_llm.backend.host import to_float
from keras_llm.backend.kept_values import values_kept
from keras_llm.backend.keras_private import built_with, inner_optimizer, optimizer_twin
from keras_llm.checkpoints.random_states import random_states_kept
from keras_llm.distribution import world
from keras_llm.explanation.counted_tokens import unpacked
from keras_llm.explanation.optimizer_facts import nbytes
from keras_llm.tracing import torch as torch_stages
from keras_llm.tracing.batch import first_batch
from keras_llm.tracing.tables import total_norm
from keras_llm.tracing.tokens import Tokens, read_tokens

if keras.backend.backend() == "torch":
    stages = torch_stages
elif keras.backend.backend() == "jax":
    from keras_llm.tracing import jax as stages
else:
    from keras_llm.tracing import tensorflow as stages


class TracedStep(NamedTuple):
    """What a step was, in numbers.

    Attributes:
        batch: `x`, `y` and `sample_weight`, as tensors on their way into the model.
        logits: What the model returned.
        tokens: What is known of each token.
        loss: What was minimised.
        kept_bytes: What forward and loss kept for the backward pass, weights not included; None
            where the backend does not tell.
        paths: Of the trained variables.
        columns: For each of them, in that order: how many `"parameters"` it has, and the L2 norms
            of its `"gradient"`, of that when `"clipped"`, of its `"weights"` before the update and
            of the `"update"`; None where it has no gradient.
        learning_rate: Of the update.
        update: Its number, from 1.
        gradient_bytes, state_bytes: Sizes of all gradients and of the optimizer's state.
        seconds: Of each stage.
        gpu_bytes: What tensors held on the GPU after each stage; empty where that is not known.
    """

    batch: dict[str, Any]
    logits: Any
    tokens: Tokens
    loss: float
    kept_bytes: int | None
    paths: list[str]
    columns: dict[str, list]
    learning_rate: float
    update: int
    gradient_bytes: int
    state_bytes: int
    seconds: dict[str, float]
    gpu_bytes: dict[str, int]


def traced_step(model, loss, data) -> TracedStep:
    """Takes the step that `fit` would take on a batch, stage by stage, and undoes it.

    A model without weights gets them first, of the batch's shapes, as by `fit`. One that has
    nothing to train is refused.
    """
    with random_states_kept():
        batch = first_batch(data)
    if not model.built:
        model(keras.tree.map_structure(symbolic, batch[0]))
    if not model.trainable_variables:
        raise ValueError(
            "trace needs a model with weights to train. "
            f"Received: {type(model).__name__} {model.name!r}, which has none"
        )
    with model_kept(model):
        return take(model, loss, batch)


def check_state(optimizer, variables):
    """Raises `ValueError` where other processes have a part of the optimizer's state."""
    known = {id(variable) for variable in built_with(optimizer)}
    missing = sum(id(variable) not in known for variable in variables)
    if missing:
        raise ValueError(
            "trace needs the optimizer's state of all variables: trace before fit, or train "
            "without keras_llm.distribute(shard=...). Received: an optimizer without state of "
            f"{missing} of {len(variables)} variables"
        )


def take(model, loss, batch) -> TracedStep:
    """The step; it changes the model."""
    x, y, sample_weight = unpacked(model, batch)
    variables = model.trainable_variables
    before = [ops.copy(variable.value) for variable in variables]
    optimizer = optimizer_twin(model.optimizer)
    if not optimizer.built:
        optimizer.build(variables)
    if world().size > 1:
        check_state(optimizer, variables)
    rate, update = to_float(optimizer.learning_rate), int(optimizer.iterations) + 1
    clock = stages.make_clock()

    with clock("batch"):
        tensors = on_device((x, y, sample_weight))
    done = stages.differentiate(model, optimizer, tensors, variables, clock)
    tokens = read_tokens(loss, x, *on_device((y, sample_weight)), done.logits, done.mask)
    # Before the update: some optimizers clip in place.
    norms, clipped = gradient_norms(done.gradients, optimizer)
    after = stages.apply(optimizer, done.gradients, variables, clock)
    pairs = zip(after, before, strict=True)
    return TracedStep(
        batch=dict(zip(("x", "y", "sample_weight"), tensors, strict=True)),
        logits=done.logits,
        tokens=tokens,
        loss=done.loss,
        kept_bytes=done.kept_bytes,
        paths=[variable.path for variable in variables],
        columns={
            "parameters": [math.prod(variable.shape) for variable in variables],
            "gradient": norms,
            "clipped": clipped,
            "weights": [norm(numbers(value)) for value in before],
            "update": [norm(numbers(new) - numbers(old)) for new, old in pairs],
        },
        learning_rate=rate,
        update=update,
        gradient_bytes=nbytes(g for g in done.gradients if g is not None),
        state_bytes=nbytes(v for v in optimizer.variables if len(v.shape)),
        seconds=clock.seconds,
        gpu_bytes=clock.gpu_bytes,
    )


@contextlib.contextmanager
def model_kept(model):
    """Context manager that restores the model, its optimizer and the random state on exit.

    That is weights, and the state of layers, metrics and optimizer. It needs memory for a second
    copy of all of them.
    """
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    with random_states_kept(), torch_stages.modules_kept(model), values_kept(variables):
        yield


def on_device(parts):
    """Copies as tensors: on PyTorch, Keras's losses change `sample_weight` in place."""
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else ops.copy(ops.convert_to_tensor(leaf)), parts
    )


def symbolic(array):
    """A symbol of an array's shape and type."""
    return keras.KerasTensor(array.shape, keras.backend.standardize_dtype(array.dtype))


def gradient_norms(gradients, optimizer) -> tuple[list[float | None], list[float | None]]:
    """The norms of the gradients, and what the optimizer's clipping makes of them."""
    scale = getattr(optimizer, "dynamic_scale", optimizer.loss_scale_factor)
    scale = 1.0 if scale is None else to_float(scale)
    optimizer = inner_optimizer(optimizer)

    def norms(limit=math.inf):
        values = (None if g is None else numbers(g) / scale for g in gradients)
        return [None if v is None else norm(v.clip(-limit, limit)) for v in values]

    raw = norms()
    if optimizer.clipvalue:
        return raw, norms(optimizer.clipvalue)
    if optimizer.clipnorm:
        return raw, [n and min(n, optimizer.clipnorm) for n in raw]
    limit = optimizer.global_clipnorm
    # Exactly 1 where nothing is clipped.
    factor = limit / max(total_norm(raw) or 0.0, limit) if limit else 1.0
    return raw, [n and n * factor for n in raw]


def numbers(tensor) -> np.ndarray:
    """A tensor's numbers; TensorFlow's gradient of an embedding becomes one tensor."""
    return ops.convert_to_numpy(ops.convert_to_tensor(tensor)).astype("float64")


def norm(values: np.ndarray) -> float:
    """The root of the sum of squares."""
    return float(np.linalg.norm(values.ravel()))
