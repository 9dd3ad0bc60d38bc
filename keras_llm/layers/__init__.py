"""The layers of a pre-norm transformer, one class per file."""

from keras_llm.layers.attention import Attention
from keras_llm.layers.feed_forward import GatedFeedForward
from keras_llm.layers.key_values import KeyValues
from keras_llm.layers.rms_norm import RMSNorm
from keras_llm.layers.rotary_embedding import RotaryEmbedding
from keras_llm.layers.token_embedding import TokenEmbedding
from keras_llm.layers.transformer_block import TransformerBlock
from keras_llm.layers.vocabulary_head import VocabularyHead

__all__ = [
    "Attention",
    "GatedFeedForward",
    "KeyValues",
    "RMSNorm",
    "RotaryEmbedding",
    "TokenEmbedding",
    "TransformerBlock",
    "VocabularyHead",
]
