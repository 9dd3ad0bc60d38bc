"""Scaled dot-product attention on JAX and TensorFlow: Keras's own."""

import keras
from keras import ops

from keras_llm.backend.ops.device import device_type


def segments(segment_ids, counts, dtype, head_dim):
    """What `attend` takes as `segment_ids`: here the ids; elsewhere what all layers can share.

    Args:
        segment_ids: Integers `[batch, length]` that do not decrease along a row.
        counts: At least the number of segments of each row, integers `[batch]` on the host; None
            where nobody knows.
        dtype: The dtype of the queries to come, by name.
        head_dim: Their last dimension.
    """
    return segment_ids


def attend(query, key, value, mask=None, causal=False, segment_ids=None):
    """softmax(Q K^T / sqrt(head_dim)) V, `[batch, length, heads, head_dim]` like the queries.

    Args:
        query: `[batch, length, heads, head_dim]`.
        key: `[batch, source_length, key_value_heads, head_dim]`.
        value: Like `key`.
        mask: Booleans that broadcast to `[batch, heads, length, source_length]`: true where a query
            may attend to a key; None masks nothing. The output is undefined where a query may
            attend to no key.
        causal: Whether query t attends only to keys 0..t. Not combined with `mask`.
        segment_ids: Integers `[batch, length]` that do not decrease along a row, what `segments`
            makes of them, or None. With `causal`, a query attends only to keys with its own
            segment id.
    """
    heads, shared = query.shape[2], key.shape[2]
    if shared == 1 < heads:
        # Keras on TensorFlow repeats several key-value heads itself, but not a single one.
        key, value = (ops.repeat(x, heads, axis=2) for x in (key, value))
    if segment_ids is not None:
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    dtype = keras.backend.standardize_dtype(query.dtype)
    if dtype == "float16" and keras.backend.backend() == "jax" and device_type() != "gpu":
        # A compiled function would have products that only GPUs have: of float16, in float32.
        query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
    output = ops.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
    return ops.cast(output, dtype)
