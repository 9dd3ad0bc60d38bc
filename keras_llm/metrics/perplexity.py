"""The number that language models are compared by."""

from keras import ops

from keras_llm.metrics.token_metric import TokenMetric
from keras_llm.registration import register


@register("metrics")
class Perplexity(TokenMetric):
    """Perplexity over the epoch: the size of a vocabulary that would be as hard to guess from.

        perplexity = exp(sum of nll / sum of tokens)

    From the raw negative log-likelihood, whatever the loss smooths or focuses, and from the sums of
    the whole epoch: a mean of batch perplexities is a different, larger number.

    Args:
        ignore_index, from_logits: As in `TokenMetric`; None for the loss's.
        name: The metric's name in logs.

    Example:
    >>> import numpy as np
    >>> metric = Perplexity(ignore_index=0)
    >>> metric.update_state(np.array([[3, 0]]), np.zeros((1, 2, 8), "float32"))
    >>> round(float(metric.result()), 4)                  # knows nothing of 8 tokens
    8.0
    """

    def __init__(self, ignore_index=None, from_logits=None, name="perplexity"):
        super().__init__(ignore_index, from_logits, name)

    def equation(self):
        """The equation, for `explain`."""
        return "exp(sum of -log p(label) / tokens that count)", ""

    def numerator_and_denominator(self, statistics):
        """Nats, and tokens."""
        return statistics.nll, statistics.tokens

    def result(self):
        """The exponential of the mean nll; 1 where nothing counted."""
        return ops.exp(super().result())
