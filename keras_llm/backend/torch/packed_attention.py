"""Causal attention within the segments (documents) of packed rows, without a mask of all pairs.

Segments of similar length are copied to a batch of their own and padded at the end, where causal
attention does not see the padding. So time and memory grow with the sum of the segments' squared
lengths instead of the squared length of a row. For CPUs: PyTorch's own kernel for rows of different
lengths exists for GPUs only.
"""

import torch

from keras_llm.backend.torch.tensors import upcast_dtype

# The kernels behind scaled_dot_product_attention on a CPU, forward and backward. Called by name
# because autograd does not look inside a custom operation.
FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
HAS_KERNELS = FORWARD is not None and BACKWARD is not None


# A custom operation, which a tracer does not look into: the batches depend on the values of
# `segment_ids`.
@torch.library.custom_op("keras_llm::packed_attention", mutates_args=())
def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segment_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention output, and the log-sum-exp of each query's scores `[batch * length, heads]`.

    Queries, keys, values and output are `[batch, length, heads, head_dim]`; `segment_ids`
    `[batch, length]` do not decrease along a row.
    """
    output = query.new_empty(query.shape)
    lse = query.new_empty(lse_shape(query), dtype=upcast_dtype(query))
    for indices, valid in segment_batches(segment_ids):
        batch = (take_heads(x, indices) for x in (query, key, value))
        batch_output, batch_lse = FORWARD(*batch, 0.0, True)
        output.flatten(0, 1)[indices[valid]] = batch_output.transpose(1, 2)[valid]
        lse[indices[valid]] = batch_lse.transpose(1, 2)[valid]
    return output, lse


@packed_attention.register_fake
def _(query, key, value, segment_ids):
    lse = query.new_empty(lse_shape(query), dtype=upcast_dtype(query))
    return query.new_empty(query.shape), lse


@torch.library.custom_op("keras_llm::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segment_ids: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of queries, keys and values."""
    gradients = [x.new_empty(x.shape) for x in (query, key, value)]
    for indices, valid in segment_batches(segment_ids):
        # The gradient of padding is 0.
        batch_gradient = take_heads(gradient, indices) * valid[:, None, :, None]
        batch = (take_heads(x, indices) for x in (query, key, value))
        batch_lse = lse[indices].transpose(1, 2)
        batch_output = take_heads(output, indices)
        parts = BACKWARD(batch_gradient, *batch, batch_output, batch_lse, 0.0, True)
        for whole, part in zip(gradients, parts, strict=True):
            whole.flatten(0, 1)[indices[valid]] = part.transpose(1, 2)[valid]
    return tuple(gradients)


@packed_attention_backward.register_fake
def _(gradient, query, key, value, segment_ids, output, lse):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def setup_context(ctx, inputs, output):
    """Saves what the backward pass needs."""
    ctx.save_for_backward(*inputs, *output)


def backward(ctx, gradient, _):
    """The gradients of the inputs; the log-sum-exp is not differentiated."""
    return *packed_attention_backward(gradient, *ctx.saved_tensors), None


packed_attention.register_autograd(backward, setup_context=setup_context)


def segment_batches(segment_ids):
    """For each padded length, a batch of the segments that are padded to it.

    Yields the indices of their tokens in the flattened input, `[segments, padded_length]`, and a
    mask of the same shape that is false for padding.
    """
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    lengths = starts.diff(append=starts.new_tensor([begins.numel()]))
    padded_lengths = rounded_up(lengths)
    for padded_length in padded_lengths.unique().tolist():
        chosen = padded_lengths == padded_length
        offsets = torch.arange(padded_length)
        indices = starts[chosen, None] + offsets
        yield indices.clamp_(max=begins.numel() - 1), offsets < lengths[chosen, None]


def rounded_up(lengths):
    """The lengths, rounded up by at most a quarter, so that few different ones remain."""
    step = 2 ** (lengths.float().log2().floor().long() - 2).clamp(min=0)
    return (lengths + step - 1) // step * step


def take_heads(x, indices):
    """`x` at `indices` of the flattened batch: `[segments, heads, padded_length, head_dim]`."""
    return x.flatten(0, 1)[indices].transpose(1, 2)


def lse_shape(query):
    """One log-sum-exp per token and head."""
    return query.shape[0] * query.shape[1], query.shape[2]
