"""What compile and fit are called on."""

from keras_llm.models.causal_backbone import CausalBackbone, CausalConfig
from keras_llm.models.causal_transformer import CausalTransformer
from keras_llm.models.distillation import Distillation
from keras_llm.models.from_keras_hub import from_keras_hub
from keras_llm.models.from_transformers import from_transformers
from keras_llm.models.keras_hub_model import KerasHubModel
from keras_llm.models.language_model import LanguageModel
from keras_llm.models.seq2seq_backbone import Seq2SeqBackbone, Seq2SeqConfig
from keras_llm.models.seq2seq_transformer import Seq2SeqTransformer

__all__ = [
    "CausalBackbone",
    "CausalConfig",
    "CausalTransformer",
    "Distillation",
    "KerasHubModel",
    "LanguageModel",
    "Seq2SeqBackbone",
    "Seq2SeqConfig",
    "Seq2SeqTransformer",
    "from_keras_hub",
    "from_transformers",
]
