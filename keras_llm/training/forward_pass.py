"""One forward pass and its loss, the same on every backend and in every step."""

import math
from typing import Any, NamedTuple

from keras import ops

from keras_llm.backend import vocabulary_pass
from keras_llm.backend.ids import check_dense
from keras_llm.backend.keras_private import keras_mask
from keras_llm.backend.ops.logits_pass import upcast_dtype
from keras_llm.counted_tokens import countable, nan_where
from keras_llm.token_statistics import TokenStatistics, divide
from keras_llm.training.shared_sums import SharedSums


class Pass(NamedTuple):
    """A forward pass of one micro-batch.

    Attributes:
        objective: What is minimised: a mean, or a sum where several passes make an update.
        tokens: The sum of the weights of its tokens.
        y_pred: The logits, None where they were not made.
    """

    objective: Any
    tokens: Any
    y_pred: Any


class FlatTokens(NamedTuple):
    """The tokens of a micro-batch, without its shape.

    Attributes:
        labels, weights: `[tokens]`.
        invalid: Whether a label or a weight is invalid; None where that has raised an error.
        scale: What the sum of the losses is multiplied by to be minimised.
        vocab_size: Length of a row of logits.
    """

    labels: Any
    weights: Any
    invalid: Any
    scale: Any
    vocab_size: int


class ForwardPass:
    """The forward pass of a `Step`, from a micro-batch to what is minimised.

    Its sums go to the logs and metrics on the way.

    Args:
        model: The `TokenModel`.
        sums: The logged loss and the metrics.
    """

    # Whether passes bring sums, which an update divides by its tokens; see `Step`.
    sums_gradients: bool

    def __init__(self, model, sums: SharedSums):
        self.model, self.sums, self.loss = model, sums, sums.loss
        # Positions of a row of the last batch.
        self.length = None
        # The loss, its sum and the tokens of a pass, empty before they are known; None outside one.
        self._counted = None

    def why_logits(self, sample_weight=None) -> str:
        """Why the logits of a batch have to be held; empty where one pass can do without them."""
        return self.sums.why_logits(sample_weight) or self.model.why_logits()

    def note_shape(self, y) -> int:
        """Notes the length of a batch's rows, and returns its number of positions."""
        shape = getattr(self.loss.labels(y), "shape", ())[:2]
        self.length = shape[1] if len(shape) == 2 else None
        return math.prod(size or 1 for size in shape)

    def forward(self, x, y, sample_weight, training, unit=1.0, counts=None) -> Pass:
        """Forward pass and loss of one micro-batch; its sums go to the logs and metrics.

        Args:
            x, y, sample_weight: The micro-batch.
            training: Whether layers run in training mode and gradients are wanted.
            unit: A number that sums are divided by, so that they stay as small as means. Dividing
                the update by its tokens, in the same unit, cancels it.
            counts: On the host, how many labels of each row may count; None where not known.
        """
        if not self.why_logits(sample_weight):
            return self.one_pass(x, y, sample_weight, training, unit, counts)
        if self.model.mixed is not None:
            raise ValueError(
                f"{type(self.model).__name__} does not make logits, and they are needed: "
                f"{self.why_logits(sample_weight)}"
            )
        y_pred = self.predict(x, training)
        self._counted = ()
        objective = self.model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        tokens = self.log_objective(objective, y, y_pred, sample_weight)
        if self.sums_gradients:
            objective = objective * (tokens / unit)
        return Pass(objective, tokens, y_pred)

    def loss_of_logits(self, y, y_pred, sample_weight):
        """The loss of a batch of logits; the metrics are updated on the way.

        So is the logged loss, which a pass updates when `compute_loss` has returned. A user's own
        may ask for the loss twice, as R-Drop does; the batch is counted once.
        """
        penalty = self.model.penalty()
        if self._counted:
            return self.loss(y, y_pred, sample_weight) + penalty
        total, tokens = self.sums.count(y, y_pred, sample_weight)
        loss = (total if self.loss.reduction == "sum" else divide(total, tokens)) + penalty
        total, tokens = total + penalty * tokens, ops.stop_gradient(tokens)
        if self._counted is None:
            self.sums.mean.update_state(total, tokens)
        else:
            self._counted = loss, total, tokens
        return loss

    def log_objective(self, objective, y, y_pred, sample_weight):
        """Updates the logged loss with what `compute_loss` returned, which may be a user's own.

        Returns:
            What the pass weighs: its tokens, or 1 where `compute_loss` did not count them.
        """
        has_counted = bool(self._counted)
        if not has_counted:
            # The metrics are of the labels all the same.
            self.loss_of_logits(y, y_pred, sample_weight)
        (loss, total, tokens), self._counted = self._counted, None
        if objective is not loss:
            total = objective if self.loss.reduction == "sum" else objective * tokens
        self.sums.mean.update_state(total, tokens)
        return tokens if has_counted else 1.0

    def one_pass(self, x, y, sample_weight, training, unit, counts) -> Pass:
        """A forward pass without logits: straight from the hidden vectors."""
        hidden, penalty = self.hidden_vectors(x, training)
        check_dense(hidden, "What the backbone returns")
        head = self.model.head_matrix()
        shape = (*ops.shape(hidden)[:-1], head.kernel.shape[1])
        kind = keras_mask(hidden), upcast_dtype(hidden)
        tokens = self.flat_tokens(y, sample_weight, shape, *kind, unit)
        rows = ops.reshape(hidden, (-1, hidden.shape[-1]))
        objective, sums, nll = vocabulary_pass(
            rows,
            head.kernel,
            head.bias,
            tokens.labels,
            tokens.weights,
            self.loss.formula,
            tokens.scale,
            self.sums.top_k,
            training,
            at_most=None if counts is None else int(counts.sum()),
            soft_cap=head.soft_cap,
        )
        if self.model.mixed is not None:
            objective, loss = self.model.mixed(x, rows, tokens, objective, sums[0], training)
            sums = (loss, *sums[1:])
        return self.counted(tokens, objective, sums, nll, penalty, sample_weight, unit)

    def flat_tokens(self, y, sample_weight, shape, mask, dtype, unit) -> FlatTokens:
        """The tokens of a micro-batch whose logits would have this shape."""
        loss = self.loss
        labels, weights, invalid = countable(
            y, shape, loss.ignore_index, sample_weight, mask, dtype, loss.reduction == "sum"
        )
        if invalid is not None:
            weights = ops.where(invalid, ops.zeros_like(weights), weights)
            invalid = ops.any(invalid)
        labels, weights = ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,))
        if self.sums_gradients:
            scale = 1.0 / unit
        else:
            scale = 1.0 if loss.reduction == "sum" else divide(1.0, ops.sum(weights))
        return FlatTokens(labels, weights, invalid, scale, shape[-1])

    def counted(self, tokens, objective, sums, nll, penalty, sample_weight, unit) -> Pass:
        """A pass without logits, after its sums have gone to the logs and metrics."""
        statistics = TokenStatistics(*sums)
        weights = tokens.weights
        if tokens.invalid is not None:
            # Loss and metrics show that an input was invalid; the model's weights are spared.
            wrong = nan_where(tokens.invalid, ops.zeros_like(statistics.loss))
            *sums, count = statistics
            statistics = TokenStatistics(*(total + wrong for total in sums), count)
            objective, weights = objective + wrong, weights + wrong
        each = tokens.labels, nll, weights, tokens.vocab_size
        self.sums.add(statistics, sample_weight is not None, *each)
        self.sums.mean.update_state(
            statistics.loss + penalty * statistics.tokens, statistics.tokens
        )
        total = ops.stop_gradient(statistics.tokens)
        if not isinstance(penalty, float):
            objective = objective + penalty * (total / unit if self.sums_gradients else 1.0)
        return Pass(objective, total, None)

    def hidden_vectors(self, x, training):
        """The backbone's hidden vectors, and what the layers add to the loss of every token."""
        return self.model.backbone(x, training=training), self.model.penalty()

    def predict(self, x, training):
        """The model's logits."""
        return self.model(x, training=training)


def unit_of(positions: int) -> float:
    """The power of two that is at least the number of positions: dividing by it rounds nothing."""
    return float(1 << max(positions - 1, 0).bit_length())
