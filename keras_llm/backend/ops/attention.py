"""The product of attention on JAX and TensorFlow: Keras's own."""

from keras import ops


def attend(query, key, value, mask=None, causal=False, documents=None):
    """What each query gathers: `[batch, length, heads, head_dim]`, like the queries.

    Args:
        query: `[batch, length, heads, head_dim]`.
        key: `[batch, source_length, key_value_heads, head_dim]`.
        value: As the keys.
        mask: Booleans that broadcast to `[batch, heads, length, source_length]`, or None for all
            true. A row without any is filled with numbers that mean nothing.
        causal: Whether query t sees only keys 0..t; without a mask.
        documents: `[batch, length]` integers that never fall along a row, or None: with `causal`,
            a query sees only keys of its own number.
    """
    heads, shared = query.shape[2], key.shape[2]
    if shared == 1 < heads:
        # Keras on TensorFlow repeats grouped heads by itself, but not a single one.
        key, value = (ops.repeat(x, heads, axis=2) for x in (key, value))
    if documents is not None:
        mask = documents[:, None, :, None] == documents[:, None, None, :]
    return ops.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
