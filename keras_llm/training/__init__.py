"""What happens inside one step."""

from keras_llm.checks.sanity_warning import SanityWarning
from keras_llm.training.data_model import DataModel
from keras_llm.training.step import Step
from keras_llm.training.step_facts import Processes, StepDescription
from keras_llm.training.token_model import TokenModel
from keras_llm.training.whole_weights import with_whole_weights

__all__ = [
    "DataModel",
    "Processes",
    "SanityWarning",
    "Step",
    "StepDescription",
    "TokenModel",
    "with_whole_weights",
]
