"""What `generate(...)` is made of: sampling and beam search, on logits in NumPy."""

from keras_llm.generation.beam_search import beam_search
from keras_llm.generation.generate import generate
from keras_llm.generation.samplers import Sampler, probabilities

__all__ = ["Sampler", "beam_search", "generate", "probabilities"]
