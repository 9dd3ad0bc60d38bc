"""The largest numbers of rows, in order."""

import torch

from keras_llm.backend.among import is_among


def largest(values, count: int):
    """As in `ops/`. `torch.topk` alone chooses any of several equal values.

    >>> largest(torch.tensor([[1.0, 3.0, 1.0, 3.0]]), 3).tolist()
    [[1, 3, 0]]
    """
    size = values.shape[1]
    least = values.topk(count).values[:, -1:]
    from_end = torch.arange(size, 0, -1, device=values.device)
    indices = size - (from_end * is_among(values, least, count)).topk(count).values
    order = values.gather(1, indices).sort(descending=True, stable=True).indices
    return indices.gather(1, order).int()
