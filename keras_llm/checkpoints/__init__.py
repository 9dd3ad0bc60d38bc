"""Checkpoints of a run: what is in them, and the folder they are in."""

from keras_llm.checkpoints.files import DamagedCheckpointError
from keras_llm.checkpoints.folder import CheckpointFolder, Found
from keras_llm.folder_lock import FolderInUseError

__all__ = ["CheckpointFolder", "DamagedCheckpointError", "FolderInUseError", "Found"]
