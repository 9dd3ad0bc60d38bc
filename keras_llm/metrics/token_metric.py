"""What every metric of this library shares: sums over the tokens that count, divided once."""

from typing import ClassVar

import keras
from keras import ops

from keras_llm.arguments import check_bool, check_integer
from keras_llm.backend.keras_private import keras_mask
from keras_llm.backend.ops.logits_pass import weighted
from keras_llm.counted_tokens import IGNORE_INDEX
from keras_llm.metrics.exact_sums import ExactSums
from keras_llm.names_elsewhere import NamesElsewhere
from keras_llm.token_statistics import divide, reduce_batch, token_statistics


class TokenMetric(NamesElsewhere, keras.metrics.Metric):
    """A ratio of two sums over the tokens that count, exact over the epoch whatever the batches.

        metric = sum of numerators / sum of denominators

    A metric of your own writes one of two methods, and `result` where it is not the plain ratio:
    `numerator_and_denominator`, where the sums of a batch are enough, or `per_token`, where each
    token has numbers of its own. It then needs no logits in a `LanguageModel`. One that writes its
    own `update_state` gets the logits, as any Keras metric. For `explain` it may also write
    `equation`: see `keras_llm.usual_range`.

    Args:
        ignore_index: Labels of this value do not count. None: the loss's in a `LanguageModel`;
            -100, which leaves nothing out, in another model.
        from_logits: Whether predictions are logits; probabilities otherwise. None: the loss's in a
            `LanguageModel`; true in another model.
        name: The metric's name in logs.

    Raises:
        TypeError: a subclass writes neither method.

    Example:
    >>> import keras, keras_llm, numpy as np
    >>> @keras.saving.register_keras_serializable(package="my")
    ... class Surprises(keras_llm.metrics.TokenMetric):
    ...     # The share of the tokens to which the model gave a probability below 1 %.
    ...     def per_token(self, labels, nll, vocab_size):
    ...         return keras.ops.cast(nll > np.log(100), nll.dtype), keras.ops.ones_like(nll)
    >>> metric = Surprises(ignore_index=0, name="surprises")
    >>> metric.update_state(np.array([1, 1, 0]), np.array([[9, 0], [0, 9], [9, 0]], "float32"))
    >>> float(metric.result())                            # one of two; the third is padding
    0.5
    """

    write_instead: ClassVar[dict[str, str]] = {
        "ignore_class": "ignore_index=...",
        "mask_token_id": "ignore_index=...",
        "pad_token_id": "ignore_index=...",
        "pad_id": "ignore_index=...",
        "k": "top_k=...",
        "dtype": "nothing: sums are kept so that long epochs lose nothing",
    }
    # How many best guesses count as correct; 0 where the metric does not ask.
    top_k = 0
    # What Keras's EarlyStopping and its like read with mode="auto": "up" or "down" is better.
    _direction = "down"

    def __init__(self, ignore_index=None, from_logits=None, name=None):
        if ignore_index is not None:
            ignore_index = check_integer(ignore_index, "ignore_index", IGNORE_INDEX)
        if from_logits is not None:
            from_logits = check_bool(from_logits, "from_logits")
        super().__init__(name=name)
        self._given = {"ignore_index": ignore_index, "from_logits": from_logits}
        self.ignore_index = -100 if ignore_index is None else ignore_index
        self.from_logits = True if from_logits is None else from_logits
        self.sums = ExactSums(self, 2)
        own = {
            name
            for name in ("numerator_and_denominator", "per_token", "update_state")
            if getattr(type(self), name) is not getattr(TokenMetric, name)
        }
        if not own:
            raise TypeError(
                f"{type(self).__name__} must define numerator_and_denominator(self, statistics) or "
                "per_token(self, labels, nll, vocab_size). Received: a class with neither"
            )
        self._is_per_token = "per_token" in own
        # With an `update_state` of its own nobody knows what else it needs.
        self.is_of_statistics = "update_state" not in own

    def numerator_and_denominator(self, statistics):
        """The two sums of a batch, scalars, from its `TokenStatistics`."""
        raise NotImplementedError

    def per_token(self, labels, nll, vocab_size):
        """The numerator and the denominator of each token, two vectors in `keras.ops`.

        Args:
            labels: Integers `[tokens]`, inside the vocabulary; 0 for a token that does not count.
            nll: Their negative log-likelihood in nats, `[tokens]`; any number for a token that does
                not count, whose weight is 0.
            vocab_size: How many ids there are.
        """
        raise NotImplementedError

    def follow(self, loss):
        """Counts the tokens that a loss counts, as far as the constructor did not say which."""
        for name, given in self._given.items():
            if given is None and hasattr(loss, name):
                setattr(self, name, getattr(loss, name))

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: Integer labels, `[...]`.
            y_pred: Logits, `[..., vocab]`.
            sample_weight: Weights that broadcast to the labels from the left, or None. Keras hands
                them to `weighted_metrics`, not to `metrics`.
        """
        mask = keras_mask(y_pred)
        logits = ops.stop_gradient(ops.convert_to_tensor(y_pred))
        batch = reduce_batch(
            y_true, logits, self.ignore_index, self.from_logits, sample_weight, mask
        )
        statistics = None if self._is_per_token else token_statistics(batch, top_k=self.top_k)
        self.update_from_statistics(
            statistics, batch.labels, batch.nll, batch.weights, batch.vocab_size
        )

    def update_from_statistics(self, statistics, labels, nll, weights, vocab_size):
        """Adds a batch of which all that a metric may ask for is known already.

        Args:
            statistics: Its `TokenStatistics`.
            labels, nll, weights: Of each token, of one shape.
            vocab_size: How many ids there are.
        """
        if self._is_per_token:
            pair = self.per_token(labels, nll, vocab_size)
        else:
            pair = self.numerator_and_denominator(statistics)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            method = "per_token" if self._is_per_token else "numerator_and_denominator"
            raise TypeError(
                f"{type(self).__name__}.{method} must return a pair (numerator, denominator). "
                f"Received: {pair!r}"
            )
        if self._is_per_token:
            pair = [ops.sum(weighted(value, weights)) for value in pair]
        self.sums.add(*pair)

    def can_share(self, loss):
        """Whether a loss's `TokenStatistics` are of the tokens that this metric counts."""
        return (
            self.is_of_statistics
            and getattr(loss, "ignore_index", None) == self.ignore_index
            and getattr(loss, "from_logits", None) == self.from_logits
        )

    def result(self):
        """The ratio of the sums so far; 0 where nothing counted."""
        return divide(*self.sums.values())

    def get_config(self):
        """The constructor's arguments."""
        return {"name": self.name, **self._given}
