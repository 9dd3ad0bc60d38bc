"""`generate(...)`: one token after another, by sampling or by beam search."""

from keras_llm.generation.beam_search import beam_search
from keras_llm.generation.generate import generate
from keras_llm.generation.samplers import Sampler, probabilities

__all__ = ["Sampler", "beam_search", "generate", "probabilities"]
