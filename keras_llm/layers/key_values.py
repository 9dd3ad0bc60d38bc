"""What attention looks at; kept between steps, it is the key-value cache."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops


class KeyValues(NamedTuple):
    """Keys and values of one attention layer, both `[batch, length, key_value_heads, head_dim]`.

    As a cache it is a buffer of fixed size and a value like any other: `write` returns a new one.
    Fixed shapes are what a compiled step needs; a value is what beam search can reorder.

    Example:
    >>> from keras import ops
    >>> cache = KeyValues.empty(batch=1, length=4, num_heads=1, head_dim=2, dtype="float32")
    >>> token = KeyValues(ops.ones((1, 1, 1, 2)), ops.ones((1, 1, 1, 2)))
    >>> [float(x) for x in cache.write(token, slot=2).key[0, :, 0, 0]]
    [0.0, 0.0, 1.0, 0.0]
    """

    key: Any
    value: Any

    @classmethod
    def empty(cls, batch: int, length: int, num_heads: int, head_dim: int, dtype: str) -> KeyValues:
        """A cache with room for `length` tokens."""
        zeros = ops.zeros((batch, length, num_heads, head_dim), dtype=dtype)
        return cls(zeros, zeros)

    def write(self, new: KeyValues, slot: int) -> KeyValues:
        """This cache with the tokens of `new` at `slot` and after."""
        start = (0, slot, 0, 0)
        return KeyValues(
            ops.slice_update(self.key, start, new.key),
            ops.slice_update(self.value, start, new.value),
        )
