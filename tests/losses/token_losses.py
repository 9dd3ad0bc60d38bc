"""The settings of the token losses, and a loss of a user's own."""

import itertools

import keras
import numpy as np

from keras_llm import losses

CLASS_WEIGHTS = np.random.default_rng(0).random(9).tolist()
CROSSENTROPY = [
    dict(label_smoothing=e, z_loss=z, reduction=r)
    for e, z, r in itertools.product((0.0, 0.1), (0.0, 1e-2), ("mean", "sum", "none"))
]
FOCAL = [
    dict(gamma=g, alpha=a, label_smoothing=e, z_loss=z)
    for g, a, e, z in itertools.product(
        (0.0, 0.5, 2.0), (None, 0.25, CLASS_WEIGHTS), (0.0, 0.1), (0.0, 1e-2)
    )
]


@keras.saving.register_keras_serializable(package="tests")
class SquaredTemperature(losses.TokenLoss):
    """A user's own loss."""

    def token_loss(self, nll, lse, mean_logit):
        return nll**2 + 0.1 * (lse - mean_logit)
