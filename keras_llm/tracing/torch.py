"""The stages of a step on PyTorch."""

import contextlib

import torch

from keras_llm.backend.keras_private import keras_mask
from keras_llm.tracing.stages import Clock, Differentiated, forward


def differentiate(model, optimizer, batch, variables, clock) -> Differentiated:
    """Forward, loss and backward of one batch."""
    tensors = [variable.value for variable in variables]
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    # What is kept stays in memory, so that an address stands for one piece.
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage)
        # A reference to its graph would keep both alive for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, loss, scaled = forward(model, optimizer, batch, clock)
    kept_bytes = sum(storage.nbytes() for at, storage in kept.items() if at not in weights)
    kept.clear()
    with clock("backward"):
        gradients = torch.autograd.grad(scaled, tensors, allow_unused=True)
    loss = float(loss.detach())
    return Differentiated(logits, keras_mask(logits), loss, list(gradients), kept_bytes)


@torch.no_grad()
def apply(optimizer, gradients, variables, clock) -> list:
    """Updates the variables; returns their values."""
    with clock("optimizer"):
        optimizer.apply(gradients, variables)
    return [variable.value for variable in variables]


def make_clock() -> Clock:
    """A clock that waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        return Clock(torch.cuda.synchronize, torch.cuda.memory_allocated)
    return Clock()


@contextlib.contextmanager
def modules_kept(model):
    """Context manager that restores what is in PyTorch modules inside a Keras model on exit."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, torch.nn.Module) else []
    variables = {id(variable.value) for variable in model.variables}
    tensors = list({id(t): t for t in tensors if id(t) not in variables}.values())
    copies = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
