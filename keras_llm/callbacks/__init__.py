"""`fit(callbacks=...)`: what happens between steps and between epochs."""

from keras_llm.callbacks.evaluation import Evaluation
from keras_llm.callbacks.json_lines import JSONLines
from keras_llm.callbacks.torch_tensorboard import TensorBoard
from keras_llm.callbacks.training_checkpoint import CheckpointWarning, TrainingCheckpoint
from keras_llm.callbacks.training_report import TrainingReport
from keras_llm.training.finite_guard import FiniteGuard

__all__ = [
    "CheckpointWarning",
    "Evaluation",
    "FiniteGuard",
    "JSONLines",
    "TensorBoard",
    "TrainingCheckpoint",
    "TrainingReport",
]
