"""The head: hidden vectors to logits."""

from typing import Any

import keras
from keras import ops

from keras_llm.arguments import check_number, check_positive_int
from keras_llm.backend.head_matrix import soft_capped
from keras_llm.layers.token_embedding import TokenEmbedding
from keras_llm.tensor import Tensor


@keras.saving.register_keras_serializable(package="keras_llm")
class VocabularyHead(keras.layers.Layer):
    """The logit of every id as the next token: `logits = hidden @ kernel + bias`.

    With a soft cap c, the logits are `c * tanh((hidden @ kernel + bias) / c)`: almost the same near
    0, and never beyond c (Gemma Team 2024, https://arxiv.org/abs/2408.00118, where c is 30).

    Training reads `kernel`, `bias` and `soft_cap` and computes the loss from them without the whole
    logits in memory.

    Args:
        vocab_size: Number of ids.
        d_model: Width of the hidden vectors.
        tied_to: A `TokenEmbedding` whose transposed table is the kernel (Press and Wolf 2017,
            https://arxiv.org/abs/1608.05859); None for a kernel of its own.
        use_bias: Whether to add a bias.
        soft_cap: A positive number that no logit's size exceeds, or None. transformers calls it
            `final_logit_softcapping`, KerasHub `logit_soft_cap`.

    Call arguments:
        hidden: `[..., d_model]`.

    Returns:
        Logits `[..., vocab_size]`.

    Example:
    >>> import keras, numpy as np
    >>> head = VocabularyHead(vocab_size=10, d_model=4)
    >>> tuple(head(np.zeros((2, 3, 4), "float32")).shape), tuple(head.kernel.shape)
    ((2, 3, 10), (4, 10))
    >>> head = VocabularyHead(vocab_size=10, d_model=4, soft_cap=30.0)
    >>> bool(keras.ops.all(abs(head(np.full((2, 3, 4), 1e6, "float32"))) <= 30.0))
    True
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        tied_to: TokenEmbedding | None = None,
        use_bias: bool = False,
        soft_cap: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if tied_to is not None and (tied_to.vocab_size, tied_to.d_model) != (vocab_size, d_model):
            raise ValueError(
                f"tied_to must have vocab_size={vocab_size} and d_model={d_model}. Received: "
                f"vocab_size={tied_to.vocab_size}, d_model={tied_to.d_model}"
            )
        if soft_cap is not None:
            soft_cap = check_number(soft_cap, "soft_cap", "(0, inf)")
        self.vocab_size = check_positive_int(vocab_size, "vocab_size")
        self.d_model = check_positive_int(d_model, "d_model")
        self.tied = tied_to is not None
        # A function, because Keras would count and save a layer as the head's own.
        self._tied_kernel: Any = tied_to and (lambda: ops.transpose(tied_to.embeddings))
        self.use_bias = use_bias
        self.soft_cap = soft_cap
        self.bias = None

    def build(self, input_shape: Any = None) -> None:
        """Creates the bias, and the kernel unless it is tied."""
        if not self.tied:
            self._kernel = self.add_weight(
                name="kernel",
                shape=(self.d_model, self.vocab_size),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.vocab_size,), initializer="zeros")

    @property
    def kernel(self) -> Tensor:
        """The kernel, `[d_model, vocab_size]`."""
        return self._tied_kernel() if self.tied else self._kernel

    def call(self, hidden: Tensor) -> Tensor:
        """The logits."""
        logits = ops.matmul(hidden, ops.cast(self.kernel, self.compute_dtype))
        if self.bias is not None:
            logits = logits + self.bias
        return soft_capped(logits, self.soft_cap)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        if self.tied:
            raise ValueError(
                "A tied head cannot be saved without its embedding: save the model that has both, "
                "and let the model's get_config hold the sizes."
            )
        return {
            **super().get_config(),
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "use_bias": self.use_bias,
            "soft_cap": self.soft_cap,
        }
