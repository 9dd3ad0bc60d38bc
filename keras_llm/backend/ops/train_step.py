"""The train step on JAX and TensorFlow: Keras's own, without logits where it needs none."""

import contextlib

import keras
from keras import ops

from keras_llm.backend.keras_private import keras_mask
from keras_llm.backend.ops.logits_pass import wide_dtype
from keras_llm.backend.ops.vocabulary_pass import vocabulary_pass
from keras_llm.token_statistics import countable, divide


class TrainStep:
    """Keras's step, which cannot accumulate gradients exactly per token; so it says so."""

    def prepare_step(self, optimizer, loss, micro_batch_size, jit_compile):
        """Raises where Keras would average micro-batches' means."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        given = {
            "gradient_accumulation_steps": inner.gradient_accumulation_steps if loss else None,
            "micro_batch_size": micro_batch_size,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} is exact per token on the PyTorch backend only; on this one Keras "
                    "would average the batches' means, whatever their tokens. "
                    "Use another batch_size, or KERAS_BACKEND=torch. "
                    f"Received: {name}={value!r}"
                )

    @contextlib.contextmanager
    def accumulation_given_back(self):
        """Nothing was taken over."""
        yield

    def train_step(self, *state_and_data):
        """One batch and its update."""
        with self.logits_left_out(state_and_data[-1]):
            return super().train_step(*state_and_data)

    def test_step(self, *state_and_data):
        """One batch of evaluation."""
        with self.logits_left_out(state_and_data[-1]):
            return super().test_step(*state_and_data)

    @contextlib.contextmanager
    def logits_left_out(self, data):
        """While it lasts, `call` ends with the hidden vectors, if no more is asked for."""
        _, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self.without_logits = (
            self.accounts is not None
            and self.accounts.can_do_without_logits(sample_weight)
            and self.head_is_matrix()
            # Rows that are spread over devices would be gathered for each chunk of them.
            and keras.distribution.distribution() is None
        )
        try:
            yield
        finally:
            self.without_logits = False

    def one_pass(self, y, hidden, sample_weight, training):
        """What is minimised, straight from the hidden vectors."""
        loss, (kernel, bias) = self.loss, self.head_matrix()
        labels, weights, outside = countable(
            y,
            (*hidden.shape[:-1], kernel.shape[1]),
            loss.ignore_index,
            sample_weight,
            keras_mask(hidden),
            wide_dtype(hidden),
        )
        if outside is not None:
            weights = ops.where(outside, 0.0, weights)
        hidden = ops.reshape(hidden, (-1, hidden.shape[-1]))
        labels, weights = (ops.reshape(x, (-1,)) for x in (labels, weights))
        statistics, nll = vocabulary_pass(
            hidden, kernel, bias, labels, weights, loss, self.accounts.top_k, training
        )
        if outside is not None:
            # The loss shows that an id was wrong; the weights are spared.
            wrong = ops.where(ops.any(outside), float("nan"), 0.0)
            statistics = statistics._replace(loss=statistics.loss + wrong)
        penalty, rows = self.penalty(), (labels, nll, weights, kernel.shape[1])
        self.accounts.add(statistics, penalty, sample_weight is not None, rows)
        total, tokens = statistics.loss, statistics.tokens
        return (total if loss.reduction == "sum" else divide(total, tokens)) + penalty

    def record_tokens(self, tokens):
        """Nothing is accumulated."""

    def step_callbacks(self) -> list:
        """What `fit` needs beside the step: nothing."""
        return []

    def gradient_norm(self) -> None:
        """Not known: Keras keeps the gradients to itself."""
        return None
