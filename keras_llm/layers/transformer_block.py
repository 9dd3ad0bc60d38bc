"""One block of a transformer."""

from typing import Any

import keras

from keras_llm.layers.attention import Attention
from keras_llm.layers.feed_forward import GatedFeedForward
from keras_llm.layers.key_values import KeyValues
from keras_llm.layers.rms_norm import RMSNorm
from keras_llm.tensor import Tensor


@keras.saving.register_keras_serializable(package="keras_llm")
class TransformerBlock(keras.layers.Layer):
    """Self-attention and a feed-forward part, each with a residual connection:

        x = x + SelfAttention(RMSNorm(x))
        x = x + CrossAttention(RMSNorm(x), source)      only with cross_attention=True
        x = x + FeedForward(RMSNorm(x))

    An encoder, a decoder-only model and, with `cross_attention`, the decoder of an encoder-decoder
    are all made of this block. The norm comes before each part (pre-norm, Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745). Dropout is applied to the output of each part before it is
    added, as in Vaswani et al. 2017.

    Args:
        d_model: Width of the model.
        num_heads: Number of query heads.
        num_key_value_heads: Number of key-value heads; None for `num_heads`.
        d_ff: Width of the feed-forward part's hidden layer; None for `GatedFeedForward`'s default.
        dropout: Probability of dropping an activation in training.
        epsilon: Added to the mean square in RMSNorm.
        residual_stddev: Standard deviation of the initial values of the matrices whose output is
            added to the residual stream.
        cross_attention: Whether the block has cross-attention to a source.

    Call arguments:
        x: `[batch, length, d_model]`, or `[batch, d_model]`, one token a row.
        cos_sin: The output of `RotaryEmbedding` at the positions of `x`.
        attention_mask: The mask of self-attention, as in `Attention`; None masks nothing.
        causal: Whether token t attends only to tokens 0..t.
        segment_ids: As in `Attention`.
        source: The source's `KeyValues`, from `cross_attention.keys_values`.
        cross_attention_mask: The mask of cross-attention; None masks nothing.
        cache: `KeyValues` of the tokens before `x`, or None. With a cache, the keys and values of
            `x` are written to it, and `attention_mask` is `[batch, 1, length, capacity]`.
        cache_position: Where in the cache `x` begins.

    Returns:
        The shape of `x`; with a cache, that and the new cache.

    Example:
    >>> import numpy as np
    >>> block = TransformerBlock(d_model=8, num_heads=2)
    >>> no_rotation = (np.ones((3, 1, 4), "float32"), np.zeros((3, 1, 4), "float32"))
    >>> tuple(block(np.ones((1, 3, 8), "float32"), cos_sin=no_rotation, causal=True).shape)
    (1, 3, 8)
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_key_value_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        residual_stddev: float = 0.02,
        cross_attention: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.d_model = d_model
        self.num_heads = num_heads
        self.epsilon = epsilon
        self.residual_stddev = residual_stddev
        self.has_cross_attention = cross_attention

        dtype = self.dtype_policy
        self.self_attention_norm = RMSNorm(epsilon, dtype=dtype, name="self_attention_norm")
        self.self_attention = Attention(
            d_model,
            num_heads,
            num_key_value_heads,
            output_stddev=residual_stddev,
            dtype=dtype,
            name="self_attention",
        )
        if cross_attention:
            self.cross_attention_norm = RMSNorm(epsilon, dtype=dtype, name="cross_attention_norm")
            self.cross_attention = Attention(
                d_model,
                num_heads,
                num_key_value_heads,
                output_stddev=residual_stddev,
                dtype=dtype,
                name="cross_attention",
            )
        self.feed_forward_norm = RMSNorm(epsilon, dtype=dtype, name="feed_forward_norm")
        self.feed_forward = GatedFeedForward(
            d_model, d_ff, output_stddev=residual_stddev, dtype=dtype, name="feed_forward"
        )
        self.dropout = keras.layers.Dropout(dropout, dtype=dtype)

    def build(self, input_shape: Any = None) -> None:
        """Creates the weights of all parts. Their shapes do not depend on the input."""
        shape = (None, None, self.d_model)
        self.self_attention_norm.build(shape)
        self.self_attention.build(shape)
        if self.has_cross_attention:
            self.cross_attention_norm.build(shape)
            self.cross_attention.build(shape)
        self.feed_forward_norm.build(shape)
        self.feed_forward.build(shape)
        self.dropout.build(shape)

    def call(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        causal: bool = False,
        segment_ids: Tensor | None = None,
        source: KeyValues | None = None,
        cross_attention_mask: Tensor | None = None,
        cache: KeyValues | None = None,
        cache_position: int = 0,
        training: bool | None = None,
    ) -> Tensor:
        """The equations above."""
        normed = self.self_attention_norm(x)
        keys_values = self.self_attention.keys_values(normed, cos_sin)
        if cache is not None:
            keys_values = cache = cache.write(keys_values, cache_position)
        attended = self.self_attention(
            normed,
            keys_values,
            cos_sin,
            attention_mask=attention_mask,
            causal=causal,
            segment_ids=segment_ids,
            # With a cache a token sees itself, and what padding sees is never looked at.
            sees_any=cache is not None,
        )
        x = x + self.dropout(attended, training=training)

        if self.has_cross_attention:
            normed = self.cross_attention_norm(x)
            attended = self.cross_attention(
                normed, source, attention_mask=cross_attention_mask, sees_any=cache is not None
            )
            x = x + self.dropout(attended, training=training)

        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)), training=training)
        return x if cache is None else (x, cache)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.self_attention.num_key_value_heads,
            "d_ff": self.feed_forward.d_ff,
            "dropout": self.dropout.rate,
            "epsilon": self.epsilon,
            "residual_stddev": self.residual_stddev,
            "cross_attention": self.has_cross_attention,
        }
