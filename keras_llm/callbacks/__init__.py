"""`fit(callbacks=...)`: what happens between the epochs."""

from keras_llm.callbacks.training_report import TrainingReport
from keras_llm.training.finite_guard import FiniteGuard

__all__ = ["FiniteGuard", "TrainingReport"]
