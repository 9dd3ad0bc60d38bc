"""What `generate(...)` is made of: a decoder that chooses by a sampler or by beam search."""

from keras_llm.generation.beam_search import beam_search
from keras_llm.generation.samplers import Sampler, probabilities

__all__ = ["Sampler", "beam_search", "probabilities"]
