"""The keys and values of attention; kept between decoding steps, they are the KV cache."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops


class KeyValues(NamedTuple):
    """Keys and values of one attention layer, both `[batch, length, key_value_heads, head_dim]`.

    As a cache it has a fixed length, its capacity, so that a compiled step sees one shape. It is
    immutable: `write` returns a new cache, and beam search can reorder the rows of an old one.

    Example:
    >>> from keras import ops
    >>> cache = KeyValues.empty(batch=1, capacity=4, num_heads=1, head_dim=2, dtype="float32")
    >>> token = KeyValues(ops.ones((1, 1, 1, 2)), ops.ones((1, 1, 1, 2)))
    >>> [float(x) for x in cache.write(token, cache_position=2).key[0, :, 0, 0]]
    [0.0, 0.0, 1.0, 0.0]
    """

    key: Any
    value: Any

    @classmethod
    def empty(
        cls,
        batch: int,
        capacity: int,
        num_heads: int,
        head_dim: int,
        dtype: str,
    ) -> KeyValues:
        """An empty cache for at most `capacity` tokens per row."""
        zeros = ops.zeros((batch, capacity, num_heads, head_dim), dtype=dtype)
        return cls(zeros, zeros)

    def write(self, new: KeyValues, cache_position: int) -> KeyValues:
        """A copy of this cache in which `new` begins at `cache_position`."""
        start = (0, cache_position, 0, 0)
        return KeyValues(
            ops.slice_update(self.key, start, new.key),
            ops.slice_update(self.value, start, new.value),
        )
