"""Who gets which sums: the logged loss and the metrics, from one reduction over the vocabulary."""

import keras
from keras import ops

from keras_llm.losses import MaskedLoss, TokenLoss
from keras_llm.metrics import TokenMetric
from keras_llm.metrics.exact_sums import ExactSums
from keras_llm.token_statistics import TokenStatistics, divide


class TokenMean(keras.metrics.Metric):
    """The loss per token over the epoch: a sum of losses over a sum of tokens."""

    def __init__(self, name="loss"):
        super().__init__(name=name)
        self.sums = ExactSums(self, 2)

    def update_state(self, total, tokens):
        """Adds the sum of a batch's losses and of its tokens."""
        self.sums.add(ops.stop_gradient(total), ops.stop_gradient(tokens))

    def tokens(self):
        """The tokens so far: the sum of the weights of those that count."""
        return self.sums.values()[1]

    def result(self):
        """The mean; 0 where nothing counted."""
        return divide(*self.sums.values())


class TokenAccounts:
    """The loss, the logged loss and the metrics that live on the same `TokenStatistics`.

    A plain object, not a layer: Keras would otherwise list the metrics a second time.

    Args:
        loss: A `MaskedLoss`.
        metrics: What `compile(metrics=...)` was given; Keras does not weigh these.
        weighted_metrics: What `compile(weighted_metrics=...)` was given.
    """

    def __init__(self, loss: MaskedLoss, metrics, weighted_metrics):
        self.loss = loss
        self.mean = TokenMean()
        self.arguments = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        # `TokenStatistics` have one count of correct guesses. Others are made from the logits.
        asked = [getattr(m, "top_k", 0) for m in (*flat(metrics), *flat(weighted_metrics))]
        self.top_k = next(filter(None, asked), 0)
        self.shared, self.left = self.split(metrics)
        self.shared_weighted, self.left_weighted = self.split(weighted_metrics)

    @property
    def metrics(self):
        """All metrics that are kept here, the logged loss first."""
        return [self.mean, *self.shared, *self.shared_weighted]

    def count(self, y_true, y_pred, sample_weight, penalty):
        """Adds a batch of logits to the logged loss and the metrics.

        Args:
            y_true, y_pred, sample_weight: The batch.
            penalty: What the layers add to the loss of every token (regularisation), or 0.

        Returns:
            The number to minimise, and the tokens that its mean was taken over.
        """
        if isinstance(self.loss, TokenLoss):
            statistics = self.loss.statistics(y_true, y_pred, sample_weight, self.top_k)
            total, tokens = statistics.loss, statistics.tokens
            self.add(statistics, penalty, sample_weight is not None)
            for metric in self.shared:
                if metric.needs_rows or sample_weight is not None:
                    metric.update_state(y_true, y_pred)
            for metric in self.shared_weighted:
                if metric.needs_rows:
                    metric.update_state(y_true, y_pred, sample_weight)
        else:
            total, tokens = self.loss.sums(y_true, y_pred, sample_weight)
            self.mean.update_state(total + penalty * tokens, tokens)
        objective = total if self.loss.reduction == "sum" else divide(total, tokens)
        return objective + penalty, tokens

    def add(self, statistics, penalty, are_weighted, rows=None):
        """Adds a batch to the logged loss and the metrics.

        Args:
            statistics: The batch's `TokenStatistics`.
            penalty: What the layers add to the loss of every token.
            are_weighted: Whether the statistics are of weighted tokens; then they are only for the
                metrics that Keras weighs.
            rows: Labels, `nll` and weight of each token and the vocabulary's size, for metrics
                that want to know.
        """
        statistics = TokenStatistics(*(ops.stop_gradient(field) for field in statistics))
        self.mean.update_state(statistics.loss + penalty * statistics.tokens, statistics.tokens)
        for metric in self.shared_weighted if are_weighted else self.shared + self.shared_weighted:
            if not metric.needs_rows:
                metric.update_from_statistics(statistics)
            elif rows is not None:
                metric.update_from_rows(*rows)

    @property
    def need_rows(self):
        """Whether a metric wants to know about each token."""
        return any(metric.needs_rows for metric in self.shared + self.shared_weighted)

    def can_do_without_logits(self, sample_weight):
        """Whether `TokenStatistics` are all that the loss and the metrics ask for."""
        return (
            isinstance(self.loss, TokenLoss)
            and self.loss.from_logits
            and not self.left
            and not self.left_weighted
            and (sample_weight is None or not self.shared)
        )

    def split(self, metrics):
        """The metrics that can live on the loss's statistics, and the rest as Keras wants them."""
        if not isinstance(self.loss, TokenLoss) or not isinstance(metrics, list | tuple):
            return [], metrics
        shared = [
            metric
            for metric in metrics
            if isinstance(metric, TokenMetric)
            and metric.can_share(self.loss)
            and metric.top_k in (0, self.top_k)
        ]
        return shared, [m for m in metrics if not any(m is s for s in shared)]


def flat(metrics):
    """The metrics of an argument of `compile`, however they are nested."""
    return [] if metrics is None else keras.tree.flatten(metrics)
