"""Train language models with Keras: `compile` and `fit`, exact per token.

The folders are the words of `compile` and `fit`: `losses`, `metrics`, `optimizers` and `schedules`
are its arguments, `models` is what it is called on, `data` is what `fit` reads.
"""

from keras_llm import backend  # isort: skip  (chooses the backend before Keras loads)
from keras_llm import data, generation, layers, losses, metrics, models, optimizers, schedules

__all__ = [
    "backend",
    "data",
    "generation",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "schedules",
]
