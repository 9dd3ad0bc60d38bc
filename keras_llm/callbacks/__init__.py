"""`fit(callbacks=...)`: what happens between the epochs."""

from keras_llm.callbacks.training_checkpoint import CheckpointWarning, TrainingCheckpoint
from keras_llm.callbacks.training_report import TrainingReport

__all__ = ["CheckpointWarning", "TrainingCheckpoint", "TrainingReport"]
