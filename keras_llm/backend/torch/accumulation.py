"""Gradient accumulation that is exact per token, on PyTorch."""

import keras
import torch


class Window:
    """Micro-batches whose gradients make one update.

    Keras averages the micro-batches' means, so a token in a short micro-batch weighs more, and it
    neither applies nor clears what is left at the end of `fit`. Here every micro-batch adds the
    gradient of its *sum* to `.grad`, where autograd adds anyway, and the window is divided once by
    its tokens. Windows end with the epoch, a short last one included.

    The optimizer's `gradient_accumulation_steps` is taken over, so the optimizer sees one gradient
    an update: its iterations, and schedules with them, count updates.

    Args:
        optimizer: The optimizer that `compile` was given.
        mean: Whether the update is the mean over the tokens; else their sum.
    """

    def __init__(self, optimizer, mean: bool):
        self.optimizer = optimizer
        self.size = self._inner.gradient_accumulation_steps or 1
        # Whether micro-batches bring sums, which the window divides by its tokens.
        self.divides = self.size > 1 and mean
        # Micro-batches so far, their tokens, and the tokens of the last one: 1 where the user's own
        # `compute_loss` does not tell, so that micro-batches then weigh the same.
        self.batches, self.tokens, self.step_tokens = 0, 0.0, 1.0
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

    def full(self):
        """Counts the micro-batch whose gradient is in `.grad`; whether the window is full now."""
        self.batches += 1
        self.tokens = self.tokens + self.step_tokens
        return self.batches == self.size

    @torch.no_grad()
    def apply(self, optimizer, variables):
        """Updates the variables from the window so far, if there is any, and starts a new one.

        Args:
            optimizer: The model's, which Keras may have wrapped in a `LossScaleOptimizer`.
            variables: The model's.
        """
        if self.batches == 0:
            return
        gradients = [variable.value.grad for variable in variables]
        if self.divides:
            # A window with nothing to count has gradient 0 already.
            divisor = torch.clamp(torch.as_tensor(self.tokens), min=torch.finfo(torch.float32).tiny)
            torch._foreach_div_([g for g in gradients if g is not None], divisor)
        optimizer.apply(gradients, variables)
        self.drop(variables)

    def drop(self, variables):
        """Forgets what has been accumulated."""
        for variable in variables:
            variable.value.grad = None
        self.batches, self.tokens = 0, 0.0


class WindowEnd(keras.callbacks.Callback):
    """Applies a short last window before anything looks at the weights of the epoch."""

    def on_train_begin(self, logs=None):
        """An interrupted `fit` may have left a window."""
        self.model.window.drop(self.model.trainable_variables)

    def on_test_begin(self, logs=None):
        """Validation comes before the epoch's end."""
        self.model.window.apply(self.model.optimizer, self.model.trainable_variables)

    def on_epoch_end(self, epoch, logs=None):
        """Without validation, this is the first to know."""
        self.model.window.apply(self.model.optimizer, self.model.trainable_variables)
