"""How often the best guess is the label."""

from keras_llm.arguments import check_positive_int
from keras_llm.metrics.token_metric import TokenMetric
from keras_llm.registration import register


@register("metrics")
class MaskedTokenAccuracy(TokenMetric):
    """The share of the tokens that count whose label is among the `top_k` largest logits.

    Over the tokens of the whole epoch; Keras's accuracy averages rows, of whatever length. Ids are
    compared as integers: in bfloat16, Keras's takes 31999 for 32000. Of equal logits the lowest
    id wins, as in `argmax`, so a model that has learnt nothing does not score 1.

    Args:
        top_k: How many guesses a token has.
        ignore_index, from_logits: As in `TokenMetric`; None for the loss's.
        name: The metric's name in logs; None for `masked_token_accuracy`, with `_top_5` added for
            `top_k=5`.

    Example:
    >>> import numpy as np
    >>> metric = MaskedTokenAccuracy(ignore_index=0)
    >>> metric.update_state(np.array([1, 1, 0]), np.array([[0, 9], [9, 0], [9, 0]], "float32"))
    >>> float(metric.result())                            # one of two; the third is padding
    0.5
    """

    def __init__(self, top_k=1, ignore_index=None, from_logits=None, name=None):
        top_k = check_positive_int(top_k, "top_k")
        default = "masked_token_accuracy" if top_k == 1 else f"masked_token_accuracy_top_{top_k}"
        super().__init__(ignore_index, from_logits, name or default)
        self.top_k = top_k

    _direction = "up"

    def equation(self):
        """The equation, for `explain`."""
        best = "has the largest logit"
        if self.top_k > 1:
            best = f"has one of the {self.top_k} largest logits"
        return f"share of the tokens whose label {best}", ""

    def numerator_and_denominator(self, statistics):
        """Correct guesses, and tokens."""
        return statistics.correct, statistics.tokens

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "top_k": self.top_k}
