"""One training step on PyTorch, taken slowly and then taken back."""

import contextlib
import dataclasses
import random
from typing import Any

import keras
import numpy as np
import torch

from keras_llm.backend.keras_private import global_seeds_kept, optimizer_twin
from keras_llm.backend.torch.stage_costs import Clock, KeptForBackward
from keras_llm.training.torch.gradient_accumulator import loss_scale


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """What a step was, in numbers.

    Attributes:
        x: What the model read, as it was given.
        batch: Each array of the batch on its way into the model, as `Shape`.
        logits: Each output of the model, as `Shape`; "logits" where it is the only one.
        tokens: What `read` made of the logits.
        loss: What was minimised.
        kept_bytes: What forward and loss kept for the backward pass, weights not counted.
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
        gpu_bytes: What tensors held on the GPU after each stage; empty without one.
    """

    x: Any
    batch: dict[str, "Shape"]
    logits: dict[str, "Shape"]
    tokens: Any
    loss: float
    kept_bytes: int
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
class Shape:
    """What there is to say about a tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: str
    device: str

    @classmethod
    def of(cls, tensor) -> "Shape":
        """Of an array or a tensor."""
        device = str(getattr(tensor, "device", "cpu"))
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), device)


def traced_step(model, data, read) -> TracedStep:
    """Takes the step that `fit` would take on a batch, by hand, and takes it back.

    A model without weights gets them first, of the batch's shapes, as by `fit`.

    Args:
        model: A compiled model.
        data: A batch `(x, y)` or `(x, y, sample_weight)`, or data whose first batch is taken.
        read: Called with the batch's labels, weights and the logits, all tensors; what it returns
            is kept as `tokens`.

    Raises:
        ValueError: the model has nothing to train.
    """
    with random_numbers_kept(), global_seeds_kept():
        batch = first_batch(data)
    if not model.built:
        model(keras.tree.map_structure(symbolic, batch[0]))
    if not model.trainable_variables:
        raise ValueError(
            "trace needs a model with weights to train. "
            f"Received: {type(model).__name__} {model.name!r}, which has none"
        )
    with untouched(model):
        return take(model, batch, read)


def take(model, batch, read) -> TracedStep:
    """The step; it changes the model."""
    given = keras.utils.unpack_x_y_sample_weight(batch)
    variables = model.trainable_variables
    tensors = [variable.value for variable in variables]
    before = [tensor.detach().clone() for tensor in tensors]
    optimizer = optimizer_twin(model.optimizer)
    if not optimizer.built:
        optimizer.build(variables)
    rate = float(optimizer.learning_rate)
    update = int(optimizer.iterations) + 1
    clock, kept = Clock(), KeptForBackward(tensors)

    with clock("batch"):
        x, y, sample_weight = keras.tree.map_structure(on_device, given)
    with clock("forward"), kept:
        logits = model(x, training=True)
    with clock("loss"), kept:
        loss = model.compute_loss(
            x=x, y=y, y_pred=logits, sample_weight=sample_weight, training=True
        )
        scaled = optimizer.scale_loss(loss)
    with torch.no_grad():
        tokens = read(y, sample_weight, logits)
    returned, loss = shapes({"logits": logits}), float(loss.detach())
    del logits
    with clock("backward"):
        gradients = torch.autograd.grad(scaled, tensors, allow_unused=True)
    del scaled
    known = [gradient for gradient in gradients if gradient is not None]
    # Some optimizers clip in place.
    true_gradients = [None if g is None else unscaled(g, optimizer) for g in gradients]
    norms = [norm(gradient) for gradient in true_gradients]
    clipped = clipped_norms(true_gradients, norms, getattr(optimizer, "inner_optimizer", optimizer))
    del true_gradients
    gradient_bytes = sum(map(size, known))
    with clock("optimizer"), torch.no_grad():
        optimizer.apply(gradients, variables)
    return TracedStep(
        x=given[0],
        batch=shapes({"x": x, "y": y, "sample_weight": sample_weight}),
        logits=returned,
        tokens=tokens,
        loss=loss,
        kept_bytes=kept.bytes,
        paths=[variable.path for variable in variables],
        sizes=[tensor.numel() for tensor in tensors],
        weight_norms=[norm(tensor) for tensor in before],
        gradient_norms=norms,
        clipped_norms=clipped,
        update_norms=[norm(t.double() - b.double()) for t, b in zip(tensors, before, strict=True)],
        learning_rate=rate,
        update=update,
        gradient_bytes=gradient_bytes,
        state_bytes=sum(size(v.value) for v in optimizer.variables if len(v.shape)),
        seconds=clock.seconds,
        gpu_bytes=clock.gpu_bytes,
    )


@contextlib.contextmanager
def untouched(model):
    """While it lasts, the model may be trained; then everything is as it was.

    Weights, the state of layers, metrics and optimizer, random numbers, and the window of
    accumulated gradients. It needs memory for a second copy of all of them.
    """
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    tensors = [*(v.value for v in variables), *model.parameters(), *model.buffers()]
    tensors = list({id(tensor): tensor for tensor in tensors}.values())
    copies = [tensor.detach().clone() for tensor in tensors]
    window = getattr(model, "window", None)
    in_window = dict(vars(window)) if window is not None else {}
    try:
        with random_numbers_kept(), global_seeds_kept():
            yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
        if window is not None:
            vars(window).update(in_window)


@contextlib.contextmanager
def random_numbers_kept():
    """While it lasts, random numbers may be drawn; then the next ones are what they were."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torchs)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def first_batch(data):
    """A batch as it is, or the first one of data that has batches.

    Raises:
        TypeError: `data` is neither, or an iterator, which would lose its batch.
        ValueError: it is a tuple or list, but not of two or three, or there is no batch in it.
    """
    if isinstance(data, tuple | list):
        return checked(data)
    if isinstance(data, torch.utils.data.DataLoader) and data.batch_sampler is not None:
        # Not iterated: ours would count the batch as handed out.
        rows = next(iter(data.batch_sampler), None)
        if rows is not None:
            dataset = data.dataset
            many = getattr(dataset, "__getitems__", None)
            return checked(data.collate_fn(many(rows) if many else [dataset[row] for row in rows]))
    elif isinstance(data, keras.utils.PyDataset):
        if len(data):
            return checked(data[0])
    elif is_reiterable(data):
        for batch in data:
            return checked(batch)
    else:
        raise TypeError(f"{WANTED}, or a data set of such batches. Received: {type(data).__name__}")
    raise ValueError("batch must have a batch in it. Received: data without one")


WANTED = "batch must be what fit gets at once, (x, y) or (x, y, sample_weight)"


def is_reiterable(data) -> bool:
    """Whether `data` is a collection of batches that can be gone through again."""
    single = isinstance(data, str | bytes | dict | np.ndarray | torch.Tensor)
    return hasattr(data, "__iter__") and not hasattr(data, "__next__") and not single


def checked(batch) -> tuple:
    """`batch` as a tuple, if it is one of two or three."""
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
        what = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise ValueError(f"{WANTED}. Received: {what}")
    return tuple(batch)


def shapes(parts, name="{}") -> dict[str, Shape]:
    """The shapes in nested parts, each by the name that it has in a program."""
    found = {}
    for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
        own = name.format(key)
        if isinstance(part, dict | list | tuple):
            found |= shapes(part, own + "[{!r}]")
        elif part is not None:
            found[own] = Shape.of(part)
    return found


def symbolic(leaf):
    """What stands for an array where only shapes matter."""
    return keras.KerasTensor(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))


def on_device(leaf):
    """A tensor where the model is."""
    return None if leaf is None else keras.ops.convert_to_tensor(leaf)


def unscaled(gradient, optimizer):
    """The gradient of the loss before it was scaled for float16, in a copy."""
    scale = loss_scale(optimizer)
    return gradient.clone() if scale is None else gradient / scale


def norm(tensor) -> float | None:
    """The root of the sum of squares."""
    return None if tensor is None else float(torch.linalg.vector_norm(tensor.detach().double()))


def clipped_norms(gradients, norms, optimizer) -> list[float | None]:
    """The norms of the gradients once the optimizer has clipped them."""
    if optimizer.clipvalue:
        limit = optimizer.clipvalue
        return [None if g is None else norm(g.clamp(-limit, limit)) for g in gradients]
    if optimizer.clipnorm:
        return [None if n is None else min(n, optimizer.clipnorm) for n in norms]
    if optimizer.global_clipnorm:
        whole = sum(n**2 for n in norms if n is not None) ** 0.5
        factor = optimizer.global_clipnorm / max(whole, optimizer.global_clipnorm)
        return [None if n is None else n * factor for n in norms]
    return list(norms)


def size(tensor) -> int:
    """Bytes of a tensor."""
    return 0 if tensor is None else tensor.numel() * tensor.element_size()
