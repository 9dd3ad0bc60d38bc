"""An optimizer's `learning_rate=...`: how the learning rate rises and falls with the updates."""

from keras_llm.schedules.warmup_constant import WarmupConstant
from keras_llm.schedules.warmup_cosine_decay import WarmupCosineDecay
from keras_llm.schedules.warmup_inverse_square_root import WarmupInverseSquareRoot
from keras_llm.schedules.warmup_linear_decay import WarmupLinearDecay
from keras_llm.schedules.warmup_stable_decay import WarmupStableDecay

__all__ = [
    "WarmupConstant",
    "WarmupCosineDecay",
    "WarmupInverseSquareRoot",
    "WarmupLinearDecay",
    "WarmupStableDecay",
]
