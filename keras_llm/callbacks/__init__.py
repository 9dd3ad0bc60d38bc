"""`fit(callbacks=...)`: what happens between the epochs."""

from keras_llm.callbacks.training_report import TrainingReport

__all__ = ["TrainingReport"]
