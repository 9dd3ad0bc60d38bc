"""Scaled dot-product attention with several heads."""

from typing import Any

import keras
from keras import ops

from keras_llm.arguments import check_number, check_positive_int
from keras_llm.backend.attention import attend
from keras_llm.layers.key_values import KeyValues
from keras_llm.layers.projection import projection
from keras_llm.layers.rotary_embedding import rotate
from keras_llm.tensor import Tensor


@keras.saving.register_keras_serializable(package="keras_llm")
class Attention(keras.layers.Layer):
    """Grouped-query attention, of a sequence to itself or to another (cross-attention).

        Attention(Q, K, V) = softmax(Q K^T / sqrt(head_dim)) V

    Each key-value head serves `num_heads / num_key_value_heads` query heads (Ainslie et al. 2023,
    https://arxiv.org/abs/2305.13245). One key-value head is multi-query attention; as many as query
    heads is the multi-head attention of Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762).
    There are no biases.

    `keys_values(source)` computes the keys and values, and the caller passes them to the call. So
    they can be kept: those of past tokens between decoding steps, those of an encoded source.

    Args:
        d_model: Width of the model.
        num_heads: Number of query heads.
        num_key_value_heads: Number of key-value heads; None for `num_heads`.
        output_stddev: Standard deviation of the output projection's initial values. The other
            projections have 0.02.

    Call arguments:
        x: `[batch, length, d_model]`, from which the queries are computed, or `[batch, d_model]`,
            which is one token a row.
        keys_values: The keys and values to attend to, from `keys_values(source)`.
        cos_sin: The output of `RotaryEmbedding` at the positions of `x`, or None.
        attention_mask: Booleans that broadcast to `[batch, heads, length, source_length]`: true
            where a query may attend to a key. The output is 0 for a query that may attend to no
            key. A last dimension of 1, `[batch, 1, length, 1]`, masks whole queries without a mask
            of all pairs in memory.
        causal: Whether token t attends only to tokens 0..t. Needs no mask in memory.
        segment_ids: Integers `[batch, length]`, or None. With `causal`, a token attends only to
            tokens with its own segment id, as for several documents in one row. They must not
            decrease along a row, and cannot be combined with a mask of pairs.
        sees_any: Whether it is known that every query may attend to a key. Otherwise a mask is
            searched for such as may not.

    Returns:
        The shape of `x`.

    Raises:
        ValueError: `num_heads` does not divide `d_model`, or `num_key_value_heads` does not divide
            `num_heads`; `segment_ids` with a mask of pairs, or without `causal`.

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_key_value_heads is None:
            num_key_value_heads = num_heads
        check_heads(d_model, num_heads, num_key_value_heads)
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = d_model // num_heads
        self.output_stddev = check_number(output_stddev, "output_stddev", "[0, inf)")

        key_value_width = num_key_value_heads * self.head_dim
        dtype = self.dtype_policy
        self.query = projection(d_model, "query", dtype)
        self.key = projection(key_value_width, "key", dtype)
        self.value = projection(key_value_width, "value", dtype)
        self.output_projection = projection(d_model, "output", dtype, stddev=output_stddev)

    def build(self, input_shape: Any = None) -> None:
        """Creates the four matrices. Their shapes do not depend on the input."""
        for matrix in (self.query, self.key, self.value, self.output_projection):
            matrix.build((None, None, self.d_model))

    def keys_values(
        self, source: Tensor, cos_sin: tuple[Tensor, Tensor] | None = None
    ) -> KeyValues:
        """The keys and values of `source` `[batch, source_length, d_model]`."""
        if not self.built:
            self.build()
        key = self._split_heads(self.key(source), self.num_key_value_heads)
        value = self._split_heads(self.value(source), self.num_key_value_heads)
        return KeyValues(key if cos_sin is None else rotate(key, cos_sin), value)

    def empty_cache(self, batch: int, capacity: int) -> KeyValues:
        """An empty cache for at most `capacity` tokens per row."""
        return KeyValues.empty(
            batch, capacity, self.num_key_value_heads, self.head_dim, self.compute_dtype
        )

    def call(
        self,
        x: Tensor,
        keys_values: KeyValues,
        cos_sin: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        causal: bool = False,
        segment_ids: Tensor | None = None,
        sees_any: bool = False,
    ) -> Tensor:
        """The equation above, then the output projection."""
        masks_pairs = attention_mask is not None and attention_mask.shape[-1] != 1
        if segment_ids is not None and (masks_pairs or not causal):
            raise ValueError(
                "segment_ids needs causal=True, and no attention_mask of pairs. Received: "
                f"causal={causal}, attention_mask of shape {getattr(attention_mask, 'shape', None)}"
            )
        query = self._split_heads(self.query(x), self.num_heads)
        if cos_sin is not None:
            query = rotate(query, cos_sin)
        key, value = keys_values
        if not masks_pairs:
            # A mask of whole queries is applied to the output below.
            output = attend(query, key, value, causal=causal, segment_ids=segment_ids)
        else:
            if causal:
                past = causal_mask(ops.shape(x)[1], ops.shape(key)[1])
                attention_mask = attention_mask & past
            output = attend(query, key, value, attention_mask)
        if attention_mask is not None and not sees_any:
            # Masked scores are a large negative number, not -inf: the softmax of a row with only
            # masked scores would be the mean of values that must not be seen.
            sees = ops.any(attention_mask, axis=-1, keepdims=True)
            output = ops.where(ops.swapaxes(sees, 1, 2), output, ops.zeros_like(output))
        return self.output_projection(ops.reshape(output, ops.shape(x)))

    def _split_heads(self, x, num_heads):
        return ops.reshape(x, (ops.shape(x)[0], -1, num_heads, self.head_dim))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "d_model": self.d_model,
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "output_stddev": self.output_stddev,
        }


def causal_mask(length: int, source_length: int) -> Tensor:
    """Booleans `[length, source_length]`: whether query t may attend to key s, true for s <= t."""
    keys, queries = (ops.arange(size, dtype="int32") for size in (source_length, length))
    return keys <= queries[:, None]


def check_heads(d_model: int, num_heads: int, num_key_value_heads: int) -> None:
    """Raises `ValueError` unless each of these positive integers is a multiple of the next."""
    check_positive_int(d_model, "d_model")
    check_positive_int(num_heads, "num_heads")
    check_positive_int(num_key_value_heads, "num_key_value_heads")
    if d_model % num_heads:
        raise ValueError(
            "d_model must be a multiple of num_heads. "
            f"Received: d_model={d_model}, num_heads={num_heads}"
        )
    if num_heads % num_key_value_heads:
        raise ValueError(
            "num_heads must be a multiple of num_key_value_heads. Received: "
            f"num_heads={num_heads}, num_key_value_heads={num_key_value_heads}"
        )
