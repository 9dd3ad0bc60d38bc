"""What every metric of this library shares: sums over the tokens that count, divided once."""

from abc import abstractmethod
from typing import ClassVar

import keras
from keras import ops

from keras_llm.backend.keras_private import keras_mask
from keras_llm.metrics.exact_sums import ExactSums
from keras_llm.names_elsewhere import NamesElsewhere
from keras_llm.token_statistics import divide, token_rows, token_statistics


class TokenMetric(NamesElsewhere, keras.metrics.Metric):
    """A ratio of two sums over tokens, exact over the epoch whatever the batches.

    Subclasses write `numerator_and_denominator`, and `result` where it is not the plain ratio. For
    `explain` they may also write `equation`: see `keras_llm.usual_range`.

    Args:
        ignore_index: Labels of this value do not count; the same as the loss's.
        from_logits: Whether predictions are logits; probabilities otherwise.
        name: The metric's name in logs.
    """

    write_instead: ClassVar[dict[str, str]] = {
        "ignore_class": "ignore_index=...",
        "mask_token_id": "ignore_index=...",
        "pad_token_id": "ignore_index=...",
        "k": "top_k=...",
        "dtype": "nothing: sums are kept so that long epochs lose nothing",
    }
    # How many best guesses count as correct; 0 where the metric does not ask.
    top_k = 0
    # Whether sums over all tokens are not enough; then there is an `update_from_rows`.
    needs_rows = False

    def __init__(self, ignore_index=-100, from_logits=True, name=None):
        super().__init__(name=name)
        self.ignore_index = int(ignore_index)
        self.from_logits = bool(from_logits)
        self.sums = ExactSums(self, 2)

    @abstractmethod
    def numerator_and_denominator(self, statistics):
        """The two sums of a batch, scalars, from its `TokenStatistics`."""

    def rows(self, y_true, y_pred, sample_weight):
        """The batch reduced over the vocabulary, without a gradient graph."""
        mask = keras_mask(y_pred)
        logits = ops.stop_gradient(ops.convert_to_tensor(y_pred))
        return token_rows(y_true, logits, self.ignore_index, self.from_logits, sample_weight, mask)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: Integer labels, `[...]`.
            y_pred: Logits, `[..., vocab]`.
            sample_weight: Weights that broadcast to the labels from the left, or None. Keras hands
                them to `weighted_metrics`, not to `metrics`.
        """
        rows = self.rows(y_true, y_pred, sample_weight)
        self.update_from_statistics(token_statistics(rows, top_k=self.top_k))

    def update_from_statistics(self, statistics):
        """Adds a batch whose `TokenStatistics` are known already."""
        self.sums.add(*self.numerator_and_denominator(statistics))

    def can_share(self, loss):
        """Whether a loss's `TokenStatistics` are the ones that this metric needs."""
        return (
            getattr(loss, "ignore_index", None) == self.ignore_index
            and getattr(loss, "from_logits", None) == self.from_logits
        )

    def result(self):
        """The ratio of the sums so far; 0 where nothing counted."""
        return divide(*self.sums.values())

    def get_config(self):
        """The constructor's arguments."""
        return {
            "name": self.name,
            "ignore_index": self.ignore_index,
            "from_logits": self.from_logits,
        }
