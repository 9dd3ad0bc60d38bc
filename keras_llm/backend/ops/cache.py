"""Memory of a fixed length on JAX and TensorFlow: a new array each time.

Inside a compiled loop the compiler writes in place.
"""

from keras import ops


def empty(shape, dtype: str):
    """Zeros `[batch, room, heads, head_dim]`."""
    return ops.zeros(shape, dtype=dtype)


def stored(x):
    """`x` `[batch, length, heads, head_dim]`, which is to be read in many steps."""
    return x


def written(cache, new, position):
    """`cache` `[batch, room, ...]` with `new` `[batch, length, ...]` from `position` on.

    PyTorch writes in place, so the cache that was given must not be used any more.
    """
    position = ops.convert_to_tensor(position, "int32")
    start = [ops.zeros_like(position)] * len(cache.shape)
    start[1] = position
    # Where JAX is told to have int64, it makes ids of it.
    return ops.slice_update(cache, start, ops.cast(new, cache.dtype))


def taken(x, indices, axis: int):
    """`x` at `indices` `[n]` of an axis."""
    return ops.take(x, indices, axis=axis)


def narrowed(cache, length: int):
    """A view of at least the first `length` places of a cache; where there are no views, all."""
    return cache


def latest(before, after):
    """The whole cache after steps that took `narrowed(before)` and returned `after`."""
    return after


def reordered(cache, rows):
    """`cache` with the row `rows[i]` in row i. In place on PyTorch, like `written`."""
    return taken(cache, rows, axis=0)
