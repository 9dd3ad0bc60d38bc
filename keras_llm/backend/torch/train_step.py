"""Gradient accumulation that is exact per token, on PyTorch."""

import contextlib

import keras
import torch


class TrainStep:
    """A train step whose accumulated gradient is that of the tokens of all its micro-batches.

    Keras averages the micro-batches' means, so a token in a short micro-batch weighs more, and it
    neither applies nor clears what is left at the end of `fit`. Here every micro-batch adds the
    gradient of its *sum* to `.grad`, where autograd adds anyway, and the window is divided once by
    its tokens. Windows end with the epoch, a short last one included.

    The optimizer's `gradient_accumulation_steps` is taken over at compile, so the optimizer sees
    one gradient an update: its iterations, and schedules with them, count updates.
    """

    # How many micro-batches make an update; None without accumulation.
    accumulation_steps = None
    # Of the window so far: micro-batches, and the tokens its gradient is to be divided by.
    window_batches = 0
    window_tokens = 0.0
    # What the last micro-batch's mean was divided by.
    step_tokens = 1.0

    def take_over_accumulation(self, optimizer, token_loss: bool):
        """Moves the accumulation from the optimizer into this step, for a loss of tokens."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if self.accumulation_steps and optimizer is self.optimizer:
            inner.gradient_accumulation_steps = self.accumulation_steps
        self.accumulation_steps = inner.gradient_accumulation_steps if token_loss else None
        if self.accumulation_steps:
            inner.gradient_accumulation_steps = None
        return optimizer

    @contextlib.contextmanager
    def accumulation_given_back(self):
        """While it lasts, the optimizer has its accumulation back, to be saved with it."""
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if not self.accumulation_steps:
            yield
            return
        inner.gradient_accumulation_steps = self.accumulation_steps
        try:
            yield
        finally:
            inner.gradient_accumulation_steps = None

    def record_tokens(self, tokens):
        """Keeps what the mean of this micro-batch was divided by."""
        self.step_tokens = 1.0 if self.loss.reduction == "sum" else tokens.detach()

    def train_step(self, data):
        """One micro-batch: forward, loss, backward; an update where the window is full."""
        if not self.accumulation_steps:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self.window_batches == 0:
            self.zero_grad()
        y_pred = self(x, training=True)
        loss = self.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )
        self.optimizer.scale_loss(loss * self.step_tokens).backward()
        self.window_batches += 1
        self.window_tokens = self.window_tokens + self.step_tokens
        if self.window_batches == self.accumulation_steps:
            self.apply_window()
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    @torch.no_grad()
    def apply_window(self):
        """Updates the weights from the window so far, if there is any, and starts a new one."""
        if self.window_batches == 0:
            return
        variables = self.trainable_variables
        gradients = [variable.value.grad for variable in variables]
        if self.loss.reduction != "sum":
            # A window with nothing to count has gradient 0 already.
            divisor = torch.clamp(self.window_tokens, min=torch.finfo(torch.float32).tiny)
            torch._foreach_div_([g for g in gradients if g is not None], divisor)
        self.optimizer.apply(gradients, variables)
        self.drop_window()

    def drop_window(self):
        """Forgets what has been accumulated."""
        self.zero_grad()
        self.window_batches, self.window_tokens = 0, 0.0

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """Keras's `fit`; a window of accumulated gradients ends with its epoch."""
        if self.accumulation_steps:
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.append(WindowEnd(self))
            else:
                callbacks = [WindowEnd(self), *keras.tree.flatten(callbacks or [])]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)


class WindowEnd(keras.callbacks.Callback):
    """Applies a short last window before anything looks at the weights of the epoch."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_begin(self, logs=None):
        """An interrupted `fit` may have left a window."""
        self.step.drop_window()

    def on_test_begin(self, logs=None):
        """Validation comes before the epoch's end."""
        self.step.apply_window()

    def on_epoch_end(self, epoch, logs=None):
        """Without validation, this is the first to know."""
        self.step.apply_window()
