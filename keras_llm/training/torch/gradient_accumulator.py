"""Gradients that are summed over several backward passes, and divided once, on PyTorch."""

import torch


class GradientAccumulator:
    """The backward passes whose gradients make one update: a window.

    Keras averages the micro-batches' means, so a token in a short micro-batch weighs more, and it
    neither applies nor clears what is left at the end of `fit`. Here every pass adds the gradient
    of its *sum* to `.grad`, where autograd adds anyway, and the window is divided once by its
    tokens.

    Args:
        size: Batches that make an update.
        divides: Whether passes bring sums, to be divided by their tokens.
    """

    def __init__(self, size: int, divides: bool):
        self.size, self.divides = size, divides
        self.batches, self.tokens, self.unit = 0, 0.0, 1.0

    def start(self, tensors, unit: float):
        """Starts a window.

        Args:
            tensors: The tensors of all variables; their `.grad` is cleared.
            unit: The number that all sums of the window are divided by. Undivided sums, times the
                loss scale, would overflow float16.
        """
        for tensor in tensors:
            tensor.grad = None
        self.batches, self.tokens, self.unit = 0, 0.0, unit

    def add(self, tokens):
        """Counts the backward pass whose gradient has gone into `.grad`."""
        if self.divides:
            self.tokens = self.tokens + tokens / self.unit

    def is_last_batch(self) -> bool:
        """Whether the window is full with the batch that runs."""
        return self.batches + 1 == self.size

    def is_full_with_this_batch(self) -> bool:
        """Counts a batch, and says whether the window has all of its batches."""
        self.batches += 1
        return self.batches == self.size

    def gradients(self, tensors) -> list:
        """The gradients of the update; None for a tensor that has none."""
        gradients = [tensor.grad for tensor in tensors]
        known = [gradient for gradient in gradients if gradient is not None]
        if self.divides and known:
            torch._foreach_div_(known, self.divisor())
        return gradients

    def divisor(self):
        """What the sum of a window's gradients is divided by."""
        if not self.divides:
            return 1.0
        # A window with nothing to count has gradient 0 already.
        return torch.clamp(torch.as_tensor(self.tokens), min=torch.finfo(torch.float32).tiny)

    def state_dict(self, tensors) -> dict:
        """The window so far, with copies of its gradients."""
        gradients = [None if t.grad is None else t.grad.clone() for t in tensors]
        return {
            "batches": self.batches,
            "tokens": self.tokens,
            "unit": self.unit,
            "gradients": gradients if self.batches else [],
        }

    def load_state_dict(self, state: dict, tensors) -> None:
        """Goes on with a window that `state_dict` returned."""
        self.batches, self.tokens, self.unit = (state[k] for k in ("batches", "tokens", "unit"))
        for tensor, gradient in zip(
            tensors, state["gradients"] or [None] * len(tensors), strict=True
        ):
            tensor.grad = None if gradient is None else gradient.clone()


class GradientNorms:
    """The mean norm of an epoch's gradients before clipping, without a host synchronisation."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, norm, skipped):
        """Counts an update.

        Args:
            norm: The global norm of its gradients, a scalar tensor.
            skipped: Whether it was skipped: a boolean, or a scalar tensor on the device.
        """
        if skipped is True:
            return
        if skipped is not False:
            norm = norm.masked_fill(skipped, 0.0)
        self.total = self.total + norm.double()
        self.count = self.count + (1 if skipped is False else skipped.logical_not())

    def mean(self) -> float | None:
        """The mean so far, None before the first update; this reads values from the device."""
        return float(self.total) / int(self.count) if int(self.count) else None


def loss_scale(optimizer):
    """What the optimizer multiplies the loss by, or None."""
    dynamic = getattr(optimizer, "dynamic_scale", None)
    return optimizer.loss_scale_factor if dynamic is None else dynamic.value


def add_gradients(tensors, gradients):
    """Adds to `.grad`, as a backward pass does."""
    taken = set()
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is None:
            continue
        if tensor.grad is None:
            # Two tensors may share what they are handed.
            memory = gradient.untyped_storage().data_ptr()
            tensor.grad = gradient.clone() if memory in taken else gradient
            taken.add(memory)
        else:
            tensor.grad += gradient
