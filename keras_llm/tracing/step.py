"""One training step, stage by stage, and then undone."""

import contextlib
import dataclasses
import math
import random
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_llm.backend.host import to_float
from keras_llm.backend.keras_private import global_seeds_kept, inner_optimizer, optimizer_twin
from keras_llm.explanation.execution_facts import device_of
from keras_llm.explanation.optimizer_facts import nbytes
from keras_llm.tracing.batch import first_batch

# Data loaders use PyTorch's random state on every backend.
from keras_llm.tracing.torch import random_state_kept as torch_random_state_kept

if keras.backend.backend() == "torch":
    from keras_llm.tracing.torch import apply, differentiate, make_clock, other_state_kept
elif keras.backend.backend() == "jax":
    from keras_llm.tracing.jax import apply, differentiate, make_clock, other_state_kept
else:
    from keras_llm.tracing.tensorflow import apply, differentiate, make_clock, other_state_kept


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """What a step was, in numbers.

    Attributes:
        x: What the model read, as it was given.
        batch: Each array of the batch on its way into the model.
        logits: Each output of the model; "logits" where it is the only one.
        tokens: What `read` made of the logits.
        loss: What was minimised.
        kept_bytes: What forward and loss kept for the backward pass, weights not included; None
            where the backend does not tell.
        paths: Of the trained variables, as in the lists that follow.
        sizes: Numbers in each.
        weight_norms: L2 norm of each before the update.
        gradient_norms: Of its gradient; None where it has none.
        clipped_norms: Of its gradient after clipping.
        update_norms: Of what the update added to it.
        learning_rate: Of the update.
        update: Its number, from 1.
        gradient_bytes, state_bytes: Sizes of all gradients and of the optimizer's state.
        seconds: Of each stage.
        gpu_bytes: What tensors held on the GPU after each stage; empty where that is not known.
    """

    x: Any
    batch: dict[str, "Array"]
    logits: dict[str, "Array"]
    tokens: Any
    loss: float
    kept_bytes: int | None
    paths: list[str]
    sizes: list[int]
    weight_norms: list[float]
    gradient_norms: list[float | None]
    clipped_norms: list[float | None]
    update_norms: list[float]
    learning_rate: float
    update: int
    gradient_bytes: int
    state_bytes: int
    seconds: dict[str, float]
    gpu_bytes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Array:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: str
    device: str

    @classmethod
    def of(cls, tensor) -> "Array":
        """Of an array or a tensor."""
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        return cls(tuple(tensor.shape), dtype, device_of(tensor))


def traced_step(model, data, read) -> TracedStep:
    """Takes the step that `fit` would take on a batch, stage by stage, and undoes it.

    A model without weights gets them first, of the batch's shapes, as by `fit`.

    Args:
        model: A compiled model.
        data: A batch `(x, y)` or `(x, y, sample_weight)`, or data whose first batch is taken.
        read: Called with the batch's labels and weights, the logits, and the mask of Keras's
            layers; what it returns is kept as `tokens`.

    Raises:
        ValueError: the model has nothing to train.
    """
    with random_state_kept():
        batch = first_batch(data)
    if not model.built:
        model(keras.tree.map_structure(symbolic, batch[0]))
    if not model.trainable_variables:
        raise ValueError(
            "trace needs a model with weights to train. "
            f"Received: {type(model).__name__} {model.name!r}, which has none"
        )
    with model_kept(model):
        return take(model, batch, read)


def take(model, batch, read) -> TracedStep:
    """The step; it changes the model."""
    given = keras.utils.unpack_x_y_sample_weight(batch)
    variables = model.trainable_variables
    before = [ops.copy(variable.value) for variable in variables]
    optimizer = optimizer_twin(model.optimizer)
    if not optimizer.built:
        optimizer.build(variables)
    rate = to_float(optimizer.learning_rate)
    update = int(optimizer.iterations) + 1
    clock = make_clock()

    with clock("batch"):
        x, y, sample_weight = on_device(given)
    done = differentiate(model, optimizer, (x, y, sample_weight), variables, clock)
    tokens = read(*on_device(given[1:]), done.logits, done.mask)
    # Before the update: some optimizers clip in place.
    norms, clipped = gradient_norms(done.gradients, optimizer)
    after = apply(optimizer, done.gradients, variables, clock)
    return TracedStep(
        x=given[0],
        batch=arrays({"x": x, "y": y, "sample_weight": sample_weight}),
        logits=arrays({"logits": done.logits}),
        tokens=tokens,
        loss=done.loss,
        kept_bytes=done.kept_bytes,
        paths=[variable.path for variable in variables],
        sizes=[math.prod(variable.shape) for variable in variables],
        weight_norms=[norm(numbers(value)) for value in before],
        gradient_norms=norms,
        clipped_norms=clipped,
        update_norms=[
            norm(numbers(new) - numbers(old)) for new, old in zip(after, before, strict=True)
        ],
        learning_rate=rate,
        update=update,
        gradient_bytes=sum(nbytes(g.shape, g.dtype) for g in done.gradients if g is not None),
        state_bytes=sum(nbytes(v.shape, v.dtype) for v in optimizer.variables if len(v.shape)),
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
    copies = [ops.copy(variable.value) for variable in variables]
    with random_state_kept(), other_state_kept(model):
        try:
            yield
        finally:
            for variable, copy in zip(variables, copies, strict=True):
                variable.assign(copy)


@contextlib.contextmanager
def random_state_kept():
    """Context manager that restores every random state on exit."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch_random_state_kept(), global_seeds_kept():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def arrays(parts, name="{}") -> dict[str, Array]:
    """The arrays in nested parts, each by the name that it has in a program."""
    found = {}
    for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
        own = name.format(key)
        if isinstance(part, dict | list | tuple):
            found |= arrays(part, own + "[{!r}]")
        elif part is not None:
            found[own] = Array.of(part)
    return found


def on_device(parts):
    """Copies as tensors: on PyTorch, Keras's losses change `sample_weight` in place."""

    def copied(leaf):
        return None if leaf is None else ops.copy(ops.convert_to_tensor(leaf))

    return keras.tree.map_structure(copied, parts)


def symbolic(leaf):
    """A symbol of an array's shape and type."""
    return keras.KerasTensor(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))


def gradient_norms(gradients, optimizer) -> tuple[list[float | None], list[float | None]]:
    """The norms of the gradients, and what the optimizer's clipping makes of them."""
    scale = getattr(optimizer, "dynamic_scale", optimizer.loss_scale_factor)
    scale = 1.0 if scale is None else to_float(scale)
    clipping = inner_optimizer(optimizer)
    norms, cut = [], []
    for gradient in gradients:
        if gradient is None:
            norms.append(None)
            cut.append(None)
            continue
        values = numbers(gradient) / scale
        norms.append(norm(values))
        if clipping.clipvalue:
            cut.append(norm(values.clip(-clipping.clipvalue, clipping.clipvalue)))
    if clipping.clipvalue:
        return norms, cut
    if clipping.clipnorm:
        return norms, [None if n is None else min(n, clipping.clipnorm) for n in norms]
    if clipping.global_clipnorm:
        whole = math.sqrt(sum(n**2 for n in norms if n is not None))
        factor = clipping.global_clipnorm / max(whole, clipping.global_clipnorm)
        return norms, [None if n is None else n * factor for n in norms]
    return norms, list(norms)


def numbers(tensor) -> np.ndarray:
    """A tensor's numbers; TensorFlow's gradient of an embedding becomes one tensor."""
    return ops.convert_to_numpy(ops.convert_to_tensor(tensor)).astype("float64")


def norm(values: np.ndarray) -> float:
    """The root of the sum of squares."""
    return float(np.linalg.norm(values.ravel()))
