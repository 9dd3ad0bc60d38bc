"""Causal attention within the segments (documents) of packed rows, on an NVIDIA GPU.

PyTorch's flash attention for sequences of different lengths, the kernels of
`torch.nn.attention.varlen`. The rows are one long sequence there, and `bounds` are the places where
its segments begin. So time grows with the sum of the segments' squared lengths, and no mask exists.

The kernels start a block of threads for each 128 tokens of the longest segment, for each segment
and head. Were there an entry for each token, because each might begin a segment, then almost all of
the blocks would find nothing to do, and they would take longer than the attention. So the number of
segments, or a bound that is near to it, is needed on the host. A training step knows it from the
batch before that is copied; elsewhere it is read from the device, once for all layers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

# What `torch.nn.attention.varlen` calls. By name, because that module takes the number of segments
# from the shape of a tensor, which a captured graph would fix, and calls shared key-value heads
# differently in each release.
FORWARD = getattr(torch.ops.aten, "_flash_attention_forward", None)
BACKWARD = getattr(torch.ops.aten, "_flash_attention_backward", None)
HAS_KERNELS = FORWARD is not None and BACKWARD is not None


class Segments(NamedTuple):
    """Where segments begin.

    Attributes:
        bounds: int32 `[batch * length + 1]`: the first position of each segment in the flattened
            batch, then `batch * length` in all entries that are left.
        counts: Integers on the host, of any shape, whose sum is at least the number of segments.
    """

    bounds: torch.Tensor
    counts: torch.Tensor


def find_segments(segment_ids: torch.Tensor, counts: torch.Tensor | None = None) -> Segments:
    """The segments of `segment_ids` `[batch, length]`, which do not decrease along a row.

    Without `counts` this waits for the device.
    """
    bounds = segment_bounds(segment_ids)
    if counts is None:
        counts = (bounds < segment_ids.numel()).sum().cpu()
    return Segments(bounds, counts)


def segment_bounds(segment_ids: torch.Tensor) -> torch.Tensor:
    """`Segments.bounds`, without waiting for the device.

    >>> segment_bounds(torch.tensor([[0, 0, 1], [0, 2, 2]])).tolist()
    [0, 2, 3, 4, 6, 6, 6]
    """
    continues = segment_ids[:, 1:] == segment_ids[:, :-1]
    continues = F.pad(continues, (1, 0), value=False).flatten()
    positions = torch.arange(continues.numel(), dtype=torch.int32, device=segment_ids.device)
    starts = positions.masked_fill(continues, continues.numel()).sort().values
    return F.pad(starts, (0, 1), value=continues.numel())


# A custom operation, which a tracer does not look into: the number of segments differs from batch
# to batch.
@torch.library.custom_op("keras_llm::varlen_attention", mutates_args=())
def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention output, and the log-sum-exp of each query's scores `[heads, batch * length]`.

    Queries and output are `[batch, length, heads, head_dim]`; keys and values may have fewer heads.
    """
    flat = (x.flatten(0, 1) for x in (query, key, value))
    output, lse, *_ = FORWARD(*flat, *sequences(query, bounds, counts), 0.0, True, False)
    return output.unflatten(0, query.shape[:2]), lse


@varlen_attention.register_fake
def _(query, key, value, bounds, counts):
    lse = query.new_empty(query.shape[2], query.shape[0] * query.shape[1], dtype=torch.float32)
    return query.new_empty(query.shape), lse


@torch.library.custom_op("keras_llm::varlen_attention_backward", mutates_args=())
def varlen_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    counts: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of queries, keys and values."""
    flat = (x.flatten(0, 1).contiguous() for x in (gradient, query, key, value, output))
    # The state of the generator that dropout would need.
    state, unused = bounds.new_zeros(2, dtype=torch.uint64), bounds.new_empty(0)
    gradients = BACKWARD(*flat, lse, *sequences(query, bounds, counts), 0.0, True, state, unused)
    return tuple(
        g.unflatten(0, x.shape[:2]) for g, x in zip(gradients, (query, key, value), strict=True)
    )


@varlen_attention_backward.register_fake
def _(gradient, query, key, value, bounds, counts, output, lse):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def setup_context(ctx, inputs, output):
    """Saves what the backward pass needs."""
    ctx.save_for_backward(*inputs, *output)


def backward(ctx, gradient, _):
    """The gradients of the inputs; the log-sum-exp is not differentiated."""
    return *varlen_attention_backward(gradient, *ctx.saved_tensors), None, None


varlen_attention.register_autograd(backward, setup_context=setup_context)


def sequences(query, bounds, counts):
    """The kernels' four arguments that say where sequences begin and how long they are at most."""
    used = bounds[: int(counts.sum()) + 1]
    length = query.shape[1]
    return used, used, length, length
