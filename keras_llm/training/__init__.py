"""What happens inside one step."""

from keras_llm.training.sanity import SanityWarning
from keras_llm.training.token_step import TokenStep

__all__ = ["SanityWarning", "TokenStep"]
