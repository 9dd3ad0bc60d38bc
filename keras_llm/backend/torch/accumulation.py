"""Gradients that are summed over several backward passes, and divided once, on PyTorch."""

import torch

from keras_llm.backend.torch.gradient_clipping import global_norm


class Window:
    """The backward passes whose gradients make one update.

    Keras averages the micro-batches' means, so a token in a short micro-batch weighs more, and it
    neither applies nor clears what is left at the end of `fit`. Here every pass adds the gradient
    of its *sum* to `.grad`, where autograd adds anyway, and the window is divided once by its
    tokens. Windows end with the epoch, a short last one included.

    The optimizer's `gradient_accumulation_steps` is taken over, so the optimizer sees one gradient
    an update: its iterations, and schedules with them, count updates.

    Args:
        optimizer: The optimizer that `compile` was given.
        mean: Whether the update is the mean over the tokens; else their sum.
        batches_are_cut: Whether a batch may come in several backward passes.
    """

    def __init__(self, optimizer, mean: bool, batches_are_cut: bool):
        self.optimizer = optimizer
        self.size = self._inner.gradient_accumulation_steps or 1
        # Whether backward passes bring sums, which the window divides by its tokens.
        self.divides = mean and (self.size > 1 or batches_are_cut)
        # Batches so far, their tokens, and the tokens of the last backward pass: 1 where the user's
        # own `compute_loss` does not tell, so that all passes then weigh the same.
        self.batches, self.tokens, self.step_tokens = 0, 0.0, 1.0
        self.norms = GradientNorms()
        self.take()

    @property
    def _inner(self):
        """The optimizer inside a `LossScaleOptimizer`, or itself."""
        return getattr(self.optimizer, "inner_optimizer", self.optimizer)

    def give_back(self):
        """Hands the accumulation back to the optimizer."""
        self._inner.gradient_accumulation_steps = self.size if self.size > 1 else None

    def take(self):
        """Takes it over again."""
        self._inner.gradient_accumulation_steps = None

    def add(self):
        """Counts the backward pass whose gradient has gone into `.grad`."""
        if self.divides:
            self.tokens = self.tokens + self.step_tokens

    def full(self):
        """Counts a batch; whether the window is full now."""
        self.batches += 1
        return self.batches == self.size

    @torch.no_grad()
    def apply(self, optimizer, trained):
        """Updates the variables from the window so far, if there is any, and starts a new one.

        Args:
            optimizer: The model's, which Keras may have wrapped in a `LossScaleOptimizer`.
            trained: The model's `TrainedVariables`.
        """
        if self.batches == 0:
            return
        gradients = [tensor.grad for tensor in trained.tensors]
        known = [gradient for gradient in gradients if gradient is not None]
        if self.divides and known:
            # A window with nothing to count has gradient 0 already.
            divisor = torch.clamp(torch.as_tensor(self.tokens), min=torch.finfo(torch.float32).tiny)
            torch._foreach_div_(known, divisor)
        # An optimizer of ours that clips finds the norm on its way.
        inner = self._inner
        finds_norm = hasattr(inner, "gradient_norm") and bool(inner.global_clipnorm)
        if finds_norm:
            inner.gradient_norm = None
        elif known:
            self.norms.add(global_norm(known), loss_scale(optimizer))
        optimizer.apply(gradients, trained.variables)
        if finds_norm and inner.gradient_norm is not None:
            self.norms.add(inner.gradient_norm)
        self.drop(trained)

    def drop(self, trained):
        """Forgets what has been accumulated."""
        for tensor in trained.tensors:
            tensor.grad = None
        self.batches, self.tokens = 0, 0.0


class GradientNorms:
    """The mean norm of an epoch's gradients, as they are before clipping; nothing waits for it."""

    def __init__(self):
        self.reset()

    def reset(self):
        """Starts an epoch."""
        self.total, self.count = 0.0, 0

    def add(self, norm, scale=None):
        """Counts an update.

        With a `scale`, which the loss was multiplied by, a norm that is not finite means an update
        that was left out.
        """
        counts = 1
        if scale is not None:
            counts = norm.isfinite()
            norm = torch.where(counts, norm / scale, 0.0)
        self.total = self.total + norm.double()
        self.count = self.count + counts

    def mean(self) -> float | None:
        """The mean so far, None before the first update; this reads values from the device."""
        return float(self.total) / int(self.count) if int(self.count) else None


def loss_scale(optimizer):
    """What the optimizer multiplies the loss by, or None."""
    dynamic = getattr(optimizer, "dynamic_scale", None)
    return optimizer.loss_scale_factor if dynamic is None else dynamic.value


def add_gradients(tensors, gradients):
    """Adds to `.grad`, as a backward pass does."""
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is None:
            continue
        if tensor.grad is None:
            # Two tensors may share what autograd hands out.
            tensor.grad = gradient.clone()
        else:
            tensor.grad += gradient
