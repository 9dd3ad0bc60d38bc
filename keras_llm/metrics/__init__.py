"""`compile(metrics=...)`: what is watched, exact over the epoch. One class a file."""

from keras_llm.metrics.bits_per_byte import BitsPerByte
from keras_llm.metrics.masked_token_accuracy import MaskedTokenAccuracy
from keras_llm.metrics.perplexity import Perplexity
from keras_llm.metrics.token_metric import TokenMetric

__all__ = ["BitsPerByte", "MaskedTokenAccuracy", "Perplexity", "TokenMetric"]
