"""One layer of a transformer."""

import keras

from keras_llm.layers.attention import Attention
from keras_llm.layers.feed_forward import GatedFeedForward
from keras_llm.layers.rms_norm import RMSNorm


@keras.saving.register_keras_serializable(package="keras_llm")
class TransformerBlock(keras.layers.Layer):
    """Attention, then a feed-forward part, each added to what came in (pre-norm):

        x = x + SelfAttention(RMSNorm(x))
        x = x + CrossAttention(RMSNorm(x), source)      only with cross_attention=True
        x = x + FeedForward(RMSNorm(x))

    The same block is an encoder's, a decoder's, and with `cross_attention` that of a decoder that
    reads a source. Dropout is applied to each sum's second term, as in Vaswani et al. 2017. Norms
    before the parts, not after: Xiong et al. 2020, https://arxiv.org/abs/2002.04745.

    Args:
        d_model: The width of the model.
        num_heads: Heads of the queries.
        num_key_value_heads: Heads of the keys and values; `num_heads` if None.
        d_ff: The width inside the feed-forward part; None for `GatedFeedForward`'s default.
        dropout: Share of the activations that training drops.
        epsilon: Added to the mean square in RMSNorm.
        residual_stddev: Standard deviation that the matrices which write to the sum start with.
        cross_attention: Whether the block reads a source.

    Call arguments:
        x: `[batch, length, d_model]`.
        rotation: `RotaryEmbedding`'s angles at the positions of `x`.
        attention_mask: Which tokens self-attention may see, as in `Attention`, or None for all.
        causal: Whether token t sees only tokens 0..t.
        documents: Which document of its row each token belongs to, as in `Attention`.
        source: The source's `KeyValues`, from `cross_attention.keys_values`.
        cross_attention_mask: Which source tokens may be seen, or None for all.
        cache: `KeyValues` of the tokens before `x`, or None. Given, `x` stands at `slot`, and
            `attention_mask` says which slots are seen.
        slot: Where in the cache `x` begins.

    Returns:
        `[batch, length, d_model]`; with a cache, that and the new cache.

    Example:
    >>> import numpy as np
    >>> block = TransformerBlock(d_model=8, num_heads=2)
    >>> no_rotation = (np.ones((3, 1, 4), "float32"), np.zeros((3, 1, 4), "float32"))
    >>> tuple(block(np.ones((1, 3, 8), "float32"), rotation=no_rotation, causal=True).shape)
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
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.d_model = d_model
        self.num_heads = num_heads
        self.epsilon = epsilon
        self.residual_stddev = residual_stddev
        self.reads_source = cross_attention

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

    def build(self, input_shape=None):
        """Creates the weights of all parts: their sizes are known without an input."""
        shape = (None, None, self.d_model)
        self.self_attention_norm.build(shape)
        self.self_attention.build(shape)
        if self.reads_source:
            self.cross_attention_norm.build(shape)
            self.cross_attention.build(shape)
        self.feed_forward_norm.build(shape)
        self.feed_forward.build(shape)

    def call(
        self,
        x,
        rotation,
        attention_mask=None,
        causal=False,
        documents=None,
        source=None,
        cross_attention_mask=None,
        cache=None,
        slot=0,
        training=None,
    ):
        """The equations above."""
        normed = self.self_attention_norm(x)
        keys_values = self.self_attention.keys_values(normed, rotation)
        if cache is not None:
            keys_values = cache = cache.write(keys_values, slot)
        gathered = self.self_attention(
            normed,
            keys_values,
            rotation,
            attention_mask=attention_mask,
            causal=causal,
            documents=documents,
        )
        x = x + self.dropout(gathered, training=training)

        if self.reads_source:
            normed = self.cross_attention_norm(x)
            gathered = self.cross_attention(normed, source, attention_mask=cross_attention_mask)
            x = x + self.dropout(gathered, training=training)

        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)), training=training)
        return x if cache is None else (x, cache)

    def get_config(self):
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
            "cross_attention": self.reads_source,
        }
