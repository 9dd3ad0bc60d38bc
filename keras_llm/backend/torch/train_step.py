"""One step on PyTorch: forward, loss, backward, update."""

import contextlib

import keras
import torch

from keras_llm.backend.keras_private import keras_mask
from keras_llm.backend.torch.accumulation import Window, WindowEnd
from keras_llm.backend.torch.capture import Capture
from keras_llm.backend.torch.vocabulary_pass import vocabulary_pass
from keras_llm.token_statistics import countable, divide


class TrainStep:
    """The step of a model that is compiled with a loss of tokens; any other takes Keras's own."""

    # The micro-batches of the update to come, and the backbone's graphs: set by compile with a loss
    # of tokens.
    window = capture = None

    def take_over_accumulation(self, optimizer, loss):
        """Moves the accumulation from the optimizer into this step, for a loss of tokens."""
        if self.window is not None and self.window.optimizer is optimizer:
            self.window.give_back()
        self.window = None if loss is None else Window(optimizer, loss.reduction == "mean")
        self.capture = None

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
        """One micro-batch; an update where the window is full."""
        if self.window is None:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables = self.trainable_variables
        if self.window.batches == 0:
            self.window.drop(variables)
        objective, y_pred = self.objective(x, y, sample_weight, training=True)
        self.optimizer.scale_loss(objective).backward()
        if self.window.full():
            self.window.apply(self.optimizer, variables)
        return self.results(x, y, y_pred, sample_weight)

    def test_step(self, data):
        """One batch of evaluation."""
        if self.window is None:
            return super().test_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        _, y_pred = self.objective(x, y, sample_weight, training=False)
        return self.results(x, y, y_pred, sample_weight)

    def objective(self, x, y, sample_weight, training):
        """What is minimised, and the logits if they were made.

        While gradients accumulate it is the sum over the tokens, which the window divides.
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
        hidden = self.hidden_vectors(x, training)
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
        objective, statistics = vocabulary_pass(
            hidden.reshape(-1, hidden.shape[-1]),
            kernel,
            bias,
            labels.reshape(-1),
            weights.reshape(-1),
            loss,
            1.0 if sums else divide(1.0, weights.sum()),
            self.accounts.top_k > 0,
        )
        if outside is not None:
            # The loss shows that an id was wrong; the weights are spared.
            wrong = torch.where(outside.any(), float("nan"), 0.0)
            statistics = statistics._replace(loss=statistics.loss + wrong)
            objective = objective + wrong
        penalty = self.penalty()
        self.accounts.add(statistics, penalty, sample_weight is not None)
        self.record_tokens(statistics.tokens)
        return objective + (penalty * statistics.tokens if self.window.divides else penalty)

    def hidden_vectors(self, x, training):
        """The backbone's hidden vectors."""
        if self.run_eagerly or not self.backbone.built:
            return self.backbone(x, training=training)
        if self.capture is None or self.capture.layer is not self.backbone:
            self.capture = Capture(self.backbone, self.jit_compile)
        return self.capture(x, training)

    def record_tokens(self, tokens):
        """Keeps what the mean of this micro-batch was divided by."""
        self.window.step_tokens = tokens.detach()

    def results(self, x, y, y_pred, sample_weight):
        """The metrics so far; those that need logits are brought up to date."""
        if y_pred is None:
            return self.get_metrics_result()
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, **kwargs
    ):
        """Keras's `fit`; a window of accumulated gradients ends with its epoch.

        Layers are captured anew: their settings may have been changed since the last `fit`. To
        change them in the middle of one, compile with `run_eagerly=True`.
        """
        self.capture = None
        if self.window is not None and self.window.size > 1:
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.append(WindowEnd())
            else:
                callbacks = [WindowEnd(), *keras.tree.flatten(callbacks or [])]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
