"""One step on PyTorch: forward, loss, backward, update."""

import contextlib

import keras
import torch

from keras_llm.backend.keras_private import keras_mask
from keras_llm.backend.torch.accumulation import Window, add_gradients
from keras_llm.backend.torch.capture import Capture
from keras_llm.backend.torch.micro_batches import MicroBatches, Snapshot
from keras_llm.backend.torch.step_logs import LogPoints
from keras_llm.backend.torch.vocabulary_pass import vocabulary_pass
from keras_llm.token_statistics import countable, divide


class TrainStep:
    """The step of a model that is compiled with a loss of tokens; any other takes Keras's own."""

    # Set by compile with a loss of tokens: how batches are cut, the backward passes of the update
    # to come, and the backbone's graphs.
    micro_batches = window = capture = None
    # Set while `fit` or `evaluate` runs: what does not change within an epoch, and when logs are
    # computed.
    trained = log_points = None

    def prepare_step(self, optimizer, loss, micro_batch_size, jit_compile):
        """Gets ready for what `compile` was given; the optimizer's accumulation moves here.

        Args:
            optimizer: The optimizer.
            loss: The loss of tokens, or None for another one.
            micro_batch_size: Rows of a micro-batch, `"auto"` or None.
            jit_compile: Whether graphs are compiled; `"auto"` finds out what is faster.
        """
        if loss is None and micro_batch_size is not None:
            raise ValueError(
                "micro_batch_size needs a loss of keras_llm, whose sums add up over micro-batches. "
                f"Received: micro_batch_size={micro_batch_size!r}"
            )
        micro_batches = MicroBatches(micro_batch_size)
        if self.window is not None and self.window.optimizer is optimizer:
            self.window.give_back()
        self.window = self.micro_batches = self.capture = None
        if loss is not None:
            self.micro_batches = micro_batches
            self.window = Window(optimizer, loss.reduction == "mean", micro_batches.may_cut)
            self.graphs_are_compiled = jit_compile

    @contextlib.contextmanager
    def accumulation_given_back(self):
        """While it lasts, the optimizer has its accumulation back, to be saved with it."""
        if self.window is not None:
            self.window.give_back()
        try:
            yield
        finally:
            if self.window is not None:
                self.window.take()

    def make_train_function(self, force=False):
        """Keras's, except that `jit_compile` is for the captured graphs.

        Compiled as a whole, a step falls to pieces: at the backward pass, at the optimizer, at
        Keras's own bookkeeping.
        """
        with self.step_not_compiled():
            super().make_train_function(force)

    def make_test_function(self, force=False):
        """As `make_train_function`."""
        with self.step_not_compiled():
            super().make_test_function(force)

    @contextlib.contextmanager
    def step_not_compiled(self):
        """While it lasts, Keras does not see `jit_compile`."""
        jit_compile = self.jit_compile
        self.jit_compile = jit_compile and self.window is None
        try:
            yield
        finally:
            self.jit_compile = jit_compile

    def train_step(self, data):
        """One batch; an update where the window is full."""
        if self.window is None:
            return super().train_step(data)
        trained = self.trained or TrainedVariables(self)
        if self.window.batches == 0:
            self.window.drop(trained)
        undo = self.snapshot() if self.micro_batches.argument == "auto" else None
        logs = self.micro_batches.run(
            on_device(data), lambda rows: self.backward_pass(rows, trained, undo), undo
        )
        if self.window.full():
            self.window.apply(self.optimizer, trained)
        return logs

    def backward_pass(self, data, trained, undo):
        """Forward and backward of one micro-batch: its gradient goes into `.grad`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        objective, y_pred = self.objective(x, y, sample_weight, training=True)
        objective = self.optimizer.scale_loss(objective)
        if undo is None:
            objective.backward()
        else:
            # All of the gradient or nothing: memory may run out in the middle of it.
            gradients = torch.autograd.grad(objective, trained.tensors, allow_unused=True)
            add_gradients(trained.tensors, gradients)
            undo.move_on()
        self.window.add()
        return self.results(x, y, y_pred, sample_weight)

    def test_step(self, data):
        """One batch of evaluation."""
        if self.window is None:
            return super().test_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(on_device(data))
        _, y_pred = self.objective(x, y, sample_weight, training=False)
        return self.results(x, y, y_pred, sample_weight)

    def objective(self, x, y, sample_weight, training):
        """What is minimised, and the logits if they were made.

        Where a window has several backward passes it is the sum over the tokens, which the window
        divides.
        """
        matrix = self.head_matrix()
        if matrix is not None and self.accounts.can_do_without_logits(sample_weight):
            return self.one_pass(matrix, x, y, sample_weight, training), None
        y_pred = self(x, training=training)
        loss = self.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        return (loss * self.window.step_tokens if self.window.divides else loss), y_pred

    def one_pass(self, matrix, x, y, sample_weight, training):
        """What is minimised, without logits: straight from the hidden vectors."""
        loss, (kernel, bias) = self.loss, matrix
        hidden, penalty = self.hidden_vectors(x, training)
        if self.trained is not None:
            self.trained.length = hidden.shape[1]
        labels, weights, outside = countable(
            y,
            (*hidden.shape[:-1], kernel.shape[1]),
            loss.ignore_index,
            sample_weight,
            keras_mask(hidden),
            "float64" if hidden.dtype == torch.float64 else "float32",
        )
        if outside is not None:
            weights = weights.masked_fill(outside, 0.0)
        sums = self.window.divides or loss.reduction == "sum"
        objective, statistics, nll = vocabulary_pass(
            hidden.reshape(-1, hidden.shape[-1]),
            kernel,
            bias,
            labels.reshape(-1),
            weights.reshape(-1),
            loss,
            1.0 if sums else divide(1.0, weights.sum()),
            self.accounts.top_k,
        )
        if outside is not None:
            # The loss shows that an id was wrong; the weights are spared.
            wrong = torch.where(outside.any(), float("nan"), 0.0)
            statistics = statistics._replace(loss=statistics.loss + wrong)
            objective = objective + wrong
        rows = labels.reshape(-1), nll, weights.reshape(-1), kernel.shape[1]
        self.accounts.add(statistics, penalty, sample_weight is not None, rows)
        self.record_tokens(statistics.tokens)
        return objective + (penalty * statistics.tokens if self.window.divides else penalty)

    def hidden_vectors(self, x, training):
        """The backbone's hidden vectors, and what the layers add to the loss of every token."""
        if self.run_eagerly or not self.backbone.built:
            return self.backbone(x, training=training), self.penalty()
        if self.capture is None or self.capture.layer is not self.backbone:
            self.capture = Capture(self.backbone, self.graphs_are_compiled)
        hidden = self.capture(x, training)
        # A graph is of layers that add nothing. To ask all of them takes as long as a small graph.
        adds = self.trained is None or self.trained.regularized or not self.capture.replayed
        return hidden, self.penalty() if adds else 0.0

    def record_tokens(self, tokens):
        """Keeps what the mean of this micro-batch was divided by."""
        self.window.step_tokens = tokens.detach()

    def results(self, x, y, y_pred, sample_weight):
        """The metrics so far; those that need logits are brought up to date."""
        if y_pred is not None:
            return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return self.log_points.logs(self) if self.log_points else self.get_metrics_result()

    def step_callbacks(self) -> list:
        """What `fit` needs beside the step."""
        return [EpochBounds()]

    def gradient_norm(self) -> float | None:
        """The mean global norm of this epoch's gradients before clipping; None before any."""
        return None if self.window is None else self.window.norms.mean()

    def snapshot(self):
        """What a failed backward pass has to give back."""
        return Snapshot([*self.metrics_variables, *self.non_trainable_variables])

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """Keras's `fit`; a window of accumulated gradients ends with its epoch.

        Layers are captured anew: their settings may have been changed since the last `fit`. To
        change them in the middle of one, compile with `run_eagerly=True`.
        """
        self.capture = None
        if self.window is None:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        self.log_points = LogPoints(callbacks, "train")
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        finally:
            self.trained = self.log_points = None

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Keras's `evaluate`."""
        training_points = self.log_points
        self.log_points = LogPoints(callbacks, "test")
        try:
            return super().evaluate(
                x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict, **kwargs
            )
        finally:
            self.log_points = training_points


class TrainedVariables:
    """The variables that an epoch trains, which take a small model's time to look up.

    Args:
        model: The model, built.
    """

    def __init__(self, model):
        self.variables = model.trainable_variables
        self.tensors = [variable.value for variable in self.variables]
        self.regularized = any(variable.regularizer is not None for variable in self.variables)
        # Of the last batch's sequences.
        self.length = None


class EpochBounds(keras.callbacks.Callback):
    """What the step does where an epoch begins and ends."""

    def on_train_begin(self, logs=None):
        """An interrupted `fit` may have left a window."""
        self.model.window.drop(TrainedVariables(self.model))

    def on_epoch_begin(self, epoch, logs=None):
        """Callbacks may have frozen or thawed layers."""
        self.model.trained = TrainedVariables(self.model)
        self.model.window.norms.reset()
        self.model.log_points.last = 0.0

    def on_test_begin(self, logs=None):
        """Validation comes before the epoch's end, and should see a short last window."""
        self.model.window.apply(self.model.optimizer, self.model.trained)

    def on_epoch_end(self, epoch, logs=None):
        """Without validation, this is the first to know."""
        self.model.window.apply(self.model.optimizer, self.model.trained)


def on_device(data):
    """The batch, where pinned memory allows it on its way to the device while the CPU goes on."""
    if not torch.cuda.is_available():
        return data
    return keras.tree.map_structure(
        lambda t: (
            t.to("cuda", non_blocking=True) if isinstance(t, torch.Tensor) and t.is_pinned() else t
        ),
        data,
    )
