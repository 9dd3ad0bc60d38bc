"""`compile(optimizer=...)`: how the gradients change the weights."""

from keras_llm.optimizers.adafactor import Adafactor
from keras_llm.optimizers.adamw import AdamW

__all__ = ["Adafactor", "AdamW"]
