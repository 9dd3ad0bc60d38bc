"""Attention: every token gathers from the tokens that it may see."""

import keras
from keras import ops

from keras_llm.backend.attention import attend
from keras_llm.layers.key_values import KeyValues
from keras_llm.layers.projection import projection
from keras_llm.layers.rotary_embedding import rotate


@keras.saving.register_keras_serializable(package="keras_llm")
class Attention(keras.layers.Layer):
    """Grouped-query attention, of a sequence to itself or to another.

        Attention(Q, K, V) = softmax(Q K^T / sqrt(head_dim)) V

    Each key-value head serves `num_heads / num_key_value_heads` query heads (Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245); one for all is multi-query attention, one for each the
    multi-head attention of Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762). No biases.

    Keys and values are made by `keys_values` and handed to the call, so that whoever calls can
    keep them: a decoder between its steps, an encoder-decoder for its source.

    Args:
        d_model: The width of the model.
        num_heads: Heads of the queries.
        num_key_value_heads: Heads of the keys and values; `num_heads` if None.
        output_stddev: Standard deviation that the output projection starts with. The others
            start with 0.02.

    Call arguments:
        x: `[batch, length, d_model]`.
        keys_values: What to look at, from `keys_values(source)`.
        rotation: `RotaryEmbedding`'s angles at the positions of `x`, or None.
        attention_mask: Booleans that broadcast to `[batch, heads, length, source_length]`, true
            where a token may look. A token that may look nowhere receives zeros; to say only that
            of whole tokens, `[batch, 1, length, 1]` costs no mask of all pairs.
        causal: Whether token t sees only tokens 0..t: the backend's own way, which needs no mask.
        documents: Which of several documents in a row each token belongs to, integers
            `[batch, length]` that never fall along a row, or None for one a row: a token sees only
            its own. With `causal`, and without a mask of pairs.

    Returns:
        `[batch, length, d_model]`.

    Raises:
        ValueError: heads do not divide the width, or key-value heads do not divide the heads;
            documents with a mask of pairs, or without `causal`.

    Example:
    >>> import numpy as np
    >>> attention = Attention(d_model=8, num_heads=4, num_key_value_heads=2)
    >>> x = np.ones((1, 3, 8), "float32")
    >>> tuple(attention(x, attention.keys_values(x), causal=True).shape)
    (1, 3, 8)
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_key_value_heads: int | None = None,
        output_stddev: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_key_value_heads is None:
            num_key_value_heads = num_heads
        if d_model % num_heads:
            raise ValueError(
                "d_model must be a multiple of num_heads. "
                f"Received: d_model={d_model}, num_heads={num_heads}"
            )
        if num_key_value_heads < 1 or num_heads % num_key_value_heads:
            raise ValueError(
                "num_heads must be a multiple of num_key_value_heads. Received: "
                f"num_heads={num_heads}, num_key_value_heads={num_key_value_heads}"
            )
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = d_model // num_heads
        self.output_stddev = output_stddev

        key_value_width = num_key_value_heads * self.head_dim
        dtype = self.dtype_policy
        self.query = projection(d_model, "query", dtype)
        self.key = projection(key_value_width, "key", dtype)
        self.value = projection(key_value_width, "value", dtype)
        self.output_projection = projection(d_model, "output", dtype, stddev=output_stddev)

    def build(self, input_shape=None):
        """Creates the four matrices: their sizes are known without an input."""
        for matrix in (self.query, self.key, self.value, self.output_projection):
            matrix.build((None, None, self.d_model))

    def keys_values(self, source, rotation=None) -> KeyValues:
        """The keys and values of `source` `[batch, source_length, d_model]`."""
        if not self.built:
            self.build()
        key = self._split_heads(self.key(source), self.num_key_value_heads)
        value = self._split_heads(self.value(source), self.num_key_value_heads)
        return KeyValues(key if rotation is None else rotate(key, rotation), value)

    def call(
        self,
        x,
        keys_values,
        rotation=None,
        attention_mask=None,
        causal=False,
        documents=None,
    ):
        """What every token of `x` gathers."""
        of_pairs = attention_mask is not None and attention_mask.shape[-1] != 1
        if documents is not None and (of_pairs or not causal):
            raise ValueError(
                "documents needs causal=True and no mask of pairs. Received: "
                f"causal={causal}, attention_mask of shape {getattr(attention_mask, 'shape', None)}"
            )
        query = self._split_heads(self.query(x), self.num_heads)
        if rotation is not None:
            query = rotate(query, rotation)
        key, value = keys_values
        if not of_pairs:
            # One column is about whole tokens: it is enough to blank what they gather.
            gathered = attend(query, key, value, causal=causal, documents=documents)
        else:
            if causal:
                past = causal_mask(ops.shape(x)[1], ops.shape(key)[1])
                attention_mask = attention_mask & past
            gathered = attend(query, key, value, attention_mask)
        if attention_mask is not None:
            # Masked scores are equal, not infinite: where all are masked, softmax would average
            # everything that must not be seen.
            sees_any = ops.any(attention_mask, axis=-1, keepdims=True)
            gathered = ops.where(ops.swapaxes(sees_any, 1, 2), gathered, 0.0)
        return self.output_projection(ops.reshape(gathered, ops.shape(x)))

    def _split_heads(self, x, num_heads):
        return ops.reshape(x, (*ops.shape(x)[:2], num_heads, self.head_dim))

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "output_stddev": self.output_stddev,
        }


def causal_mask(length: int, room: int, slot: int = 0):
    """`[length, room]`: whether slot s of a cache holds token t or one before it, where token 0
    stands at `slot`.
    """
    return ops.arange(room) <= slot + ops.arange(length)[:, None]
