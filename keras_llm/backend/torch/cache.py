"""Memory of a fixed length, which is written to in place."""

import torch
from keras import ops


def empty(shape, dtype: str):
    """As in `ops/`. The numbers of a head lie side by side: attention reads them one by one."""
    batch, room, heads, head_dim = shape
    return ops.zeros((batch, heads, room, head_dim), dtype=dtype).transpose(1, 2)


def written(cache, new, position):
    """As in `ops/`."""
    places = position + torch.arange(new.shape[1], device=cache.device)
    return cache.index_copy_(1, places, new)


def taken(x, indices, axis: int):
    """As in `ops/`. `keras.ops.take` puts the size of the axis into a graph."""
    return x.index_select(axis, indices)


def narrowed(cache, room: int):
    """As in `ops/`."""
    return cache[:, :room]


def latest(before, after):
    """As in `ops/`."""
    return before


def reordered(cache, rows):
    """As in `ops/`."""
    return cache.copy_(taken(cache, rows, axis=0))
