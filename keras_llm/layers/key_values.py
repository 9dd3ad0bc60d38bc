"""The keys and values of attention; kept between decoding steps, they are the KV cache."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_llm.backend.cache import empty, written
from keras_llm.tensor import Tensor


class KeyValues(NamedTuple):
    """Keys and values of one attention layer, both `[batch, length, key_value_heads, head_dim]`.

    As a cache it has a fixed length, its capacity, so that a compiled step sees one shape. `write`
    returns the new cache. The old one must not be used after that: PyTorch writes in place.

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
        shape = (batch, capacity, num_heads, head_dim)
        return cls(empty(shape, dtype), empty(shape, dtype))

    def write(self, new: KeyValues, cache_position: Tensor) -> KeyValues:
        """This cache, with `new` from `cache_position` on."""
        return KeyValues(*(written(c, n, cache_position) for c, n in zip(self, new, strict=True)))
