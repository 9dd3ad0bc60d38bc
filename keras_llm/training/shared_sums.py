"""Who gets which sums: the logged loss and the metrics, from one reduction over the vocabulary."""

import keras
from keras import ops

from keras_llm.backend.host import to_float
from keras_llm.losses import MaskedLoss, TokenLoss
from keras_llm.metrics import TokenMetric
from keras_llm.metrics.exact_sums import ExactSums
from keras_llm.token_statistics import TokenStatistics, divide


class TokenMean(keras.metrics.Metric):
    """The loss per token over the epoch: a sum of losses over a sum of tokens."""

    def __init__(self, name="loss"):
        super().__init__(name=name)
        self.sums = ExactSums(self, 2)

    def update_state(self, total, tokens=None):
        """Adds the sum of a batch's losses and of its tokens."""
        if tokens is None:
            raise TypeError(
                "compute_loss has counted this batch for the logged loss and the metrics: in place "
                "of a loop over self.metrics write return self.compute_metrics(x, y, y_pred). "
                "Received: a loss without its tokens"
            )
        self.sums.add(ops.stop_gradient(total), ops.stop_gradient(tokens))

    def tokens(self):
        """The tokens so far: the sum of the weights of those that count."""
        return self.sums.values()[1]

    def result(self):
        """The mean; 0 where nothing counted."""
        return divide(*self.sums.values())


class SharedSums:
    """The logged loss and the metrics that are computed from the same `TokenStatistics`.

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
        every = [*flat(metrics), *flat(weighted_metrics)]
        for metric in every:
            if isinstance(metric, TokenMetric):
                metric.follow(loss)
        # `TokenStatistics` have one count of correct guesses. Others are made from the logits.
        self.top_k = next(filter(None, (getattr(m, "top_k", 0) for m in every)), 0)
        self.shared, self.left = self.split(metrics)
        self.shared_weighted, self.left_weighted = self.split(weighted_metrics)

    @property
    def metrics(self):
        """All metrics that are kept here, the logged loss first."""
        return [self.mean, *self.shared, *self.shared_weighted]

    def results(self, others: dict) -> dict:
        """All results by the name they are logged by, the logged loss first.

        Args:
            others: The results that Keras keeps, by name.
        """
        named = self.named(others)
        return {name: metric.result() for name, metric in named.items()} | others

    def named(self, others: dict) -> dict:
        """The metrics that are kept here, by the name they are logged by.

        Of two metrics with one name the second is logged as Keras would: `weighted_` before it
        where it is weighted, else a number behind it.

        Args:
            others: What Keras keeps, by name.
        """
        named = {}
        for metric in self.metrics:
            name, number = metric.name, 0
            if name in named and metric in self.shared_weighted:
                name = f"weighted_{name}"
            taken = name
            while name in named or name in others:
                number += 1
                name = f"{taken}_{number}"
            named[name] = metric
        return named

    @property
    def summed(self) -> list:
        """The metrics that have no variables but their `ExactSums`."""
        return [m for m in self.metrics if len(m.variables) == len(m.sums.variables)]

    def summed_variables(self) -> list:
        """The variables of those metrics."""
        return [variable for metric in self.summed for variable in metric.variables]

    def log_of(self, grown: list) -> tuple[float, dict[str, float]]:
        """The tokens and the results of some steps.

        Args:
            grown: By how much the values of `summed_variables` grew in these steps.
        """
        with keras.device("cpu"):
            values = zip(self.summed_variables(), grown, strict=True)
            mapping = [(v, ops.convert_to_tensor(value, v.dtype)) for v, value in values]
            with keras.StatelessScope(state_mapping=mapping):
                tokens = to_float(self.mean.tokens())
                if not tokens:
                    # All batches were skipped, or had nothing to count: that is no loss of 0.
                    return tokens, {}
                summed = {id(metric) for metric in self.summed}
                named = {name: m for name, m in self.named({}).items() if id(m) in summed}
                return tokens, {name: to_float(m.result()) for name, m in named.items()}

    def count(self, y_true, y_pred, sample_weight):
        """Adds a batch of logits to the metrics.

        Args:
            y_true, y_pred, sample_weight: The batch.

        Returns:
            The sum of the losses, and the tokens that its mean is taken over.
        """
        if not isinstance(self.loss, TokenLoss):
            return self.loss.sums(y_true, y_pred, sample_weight)
        statistics, batch = self.loss.statistics(y_true, y_pred, sample_weight, self.top_k)
        each = batch.labels, batch.nll, batch.weights, batch.vocab_size
        self.add(statistics, sample_weight is not None, *each)
        if sample_weight is not None:
            for metric in self.shared:
                metric.update_state(y_true, y_pred)
        return statistics.loss, statistics.tokens

    def add(self, statistics, are_weighted, labels, nll, weights, vocab_size):
        """Adds a batch to the metrics.

        Args:
            statistics: The batch's `TokenStatistics`.
            are_weighted: Whether the statistics are of weighted tokens; then they are only for the
                metrics that Keras weighs.
            labels, nll, weights, vocab_size: Of each token, for the metrics of each token.
        """
        statistics = TokenStatistics(*(ops.stop_gradient(field) for field in statistics))
        nll = ops.stop_gradient(nll)
        for metric in self.shared_weighted if are_weighted else self.shared + self.shared_weighted:
            metric.update_from_statistics(statistics, labels, nll, weights, vocab_size)

    def why_logits(self, sample_weight) -> str:
        """Why the loss or a metric needs the logits; empty where `TokenStatistics` are enough."""
        loss = self.loss
        if not isinstance(loss, TokenLoss):
            return f"{type(loss).__name__} reads whole rows of them"
        if not loss.from_logits:
            return "the model's outputs are probabilities (from_logits=False)"
        left = [m for m in (*flat(self.left), *flat(self.left_weighted)) if m is not None]
        if left:
            names = (m if isinstance(m, str) else getattr(m, "name", str(m)) for m in left)
            return f"metrics need them: {', '.join(names)}"
        if sample_weight is not None and self.shared:
            return "metrics are not weighted by sample_weight: use weighted_metrics"
        return ""

    def split(self, metrics):
        """The metrics that share the statistics, and the rest as Keras wants them."""
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
