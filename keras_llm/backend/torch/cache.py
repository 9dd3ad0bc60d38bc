"""Memory of a fixed length, which is written to in place."""

import torch
from keras import ops

from keras_llm.backend.sizes import rounded_up


def empty(shape, dtype: str):
    """As in `ops/`. The numbers of a head are next to each other, as attention reads them."""
    batch, room, heads, head_dim = shape
    return ops.zeros((batch, heads, room, head_dim), dtype=dtype).transpose(1, 2)


def stored(x):
    """As in `ops/`: as `empty` has it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def written(cache, new, position):
    """As in `ops/`."""
    places = position + torch.arange(new.shape[1], device=cache.device)
    return cache.index_copy_(1, places, new)


def taken(x, indices, axis: int):
    """As in `ops/`. `keras.ops.take` puts the size of the axis into a graph."""
    return x.index_select(axis, indices)


def narrowed(cache, length: int):
    """As in `ops/`. On a GPU steps are recorded for each room, so there are fewer."""
    room = max(256, 1 << (length - 1).bit_length()) if cache.is_cuda else rounded_up(length)
    return cache[:, :room]


def latest(before, after):
    """As in `ops/`."""
    return before


def reordered(cache, rows):
    """As in `ops/`."""
    return cache.copy_(taken(cache, rows, axis=0))
