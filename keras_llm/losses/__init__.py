"""`compile(loss=...)`: what is minimised, per token, padding left out. One class a file."""

from keras_llm.losses.masked_kl_divergence import MaskedKLDivergence
from keras_llm.losses.masked_loss import MaskedLoss
from keras_llm.losses.masked_sparse_categorical_crossentropy import (
    MaskedSparseCategoricalCrossentropy,
)
from keras_llm.losses.masked_sparse_categorical_focal_crossentropy import (
    MaskedSparseCategoricalFocalCrossentropy,
)
from keras_llm.losses.token_loss import TokenLoss

__all__ = [
    "MaskedKLDivergence",
    "MaskedLoss",
    "MaskedSparseCategoricalCrossentropy",
    "MaskedSparseCategoricalFocalCrossentropy",
    "TokenLoss",
]
