"""Train language models with Keras: `compile` and `fit`, exact per token.

The folders are the words of `compile` and `fit`: `losses`, `metrics`, `optimizers` and `schedules`
are its arguments, `models` is what it is called on, `data` is what `fit` reads.
"""

import importlib

from keras_llm import backend  # isort: skip  (chooses the backend before Keras loads)
from keras_llm import distribution  # isort: skip  (joins the processes that torchrun started)
from keras_llm import (
    callbacks,
    data,
    generation,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    schedules,
)
from keras_llm.distribution import distribute
from keras_llm.explanation.explain import explain
from keras_llm.tracing.trace import trace

__all__ = [
    "backend",
    "callbacks",
    "data",
    "distribute",
    "distribution",
    "explain",
    "generation",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "schedules",
    "trace",
]


def __getattr__(name):
    """`plots`, when it is first asked for: it needs Matplotlib, and nothing else here does."""
    if name == "plots":
        return importlib.import_module("keras_llm.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
