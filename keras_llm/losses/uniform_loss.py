"""The loss of a model that has learnt nothing."""

import math

from keras import ops

from keras_llm.losses import TokenLoss


def uniform_loss(loss, vocab_size: int) -> float:
    """The loss of a token to whom all tokens are equally likely; ln V for cross entropy.

    >>> import keras_llm
    >>> loss = keras_llm.losses.MaskedSparseCategoricalFocalCrossentropy(gamma=2.0)
    >>> round(uniform_loss(loss, 2), 6)                   # (1/2)^2 * ln 2
    0.173287
    """
    log_size = math.log(vocab_size)
    if not isinstance(loss, TokenLoss):
        return log_size
    # Logits of 0; log-probabilities where the outputs are probabilities.
    lse, mean_logit = (log_size, 0.0) if loss.from_logits else (0.0, -log_size)
    numbers = [ops.convert_to_tensor([x], "float32") for x in (log_size, lse, mean_logit)]
    if loss.class_weights is not None:
        weights = ops.convert_to_tensor(loss.class_weights, "float32")
        numbers.append(ops.reshape(ops.mean(weights), (1,)))
    return float(loss.token_loss(*numbers)[0])
