"""Scaled dot-product attention by PyTorch's fused kernels, without the scores in memory."""

import torch
import torch.nn.functional as F

from keras_llm.backend.torch import varlen_attention as varlen
from keras_llm.backend.torch.device import has_flash_attention
from keras_llm.backend.torch.packed_attention import HAS_KERNELS, packed_attention
from keras_llm.backend.torch.tensors import is_on_host


def segments(segment_ids, counts, dtype, head_dim):
    """As in `ops/`: on a GPU, where the segments begin, if the kernel for them can be used."""
    # The kernel takes a head's numbers eight at a time.
    takes = varlen.HAS_KERNELS and head_dim % 8 == 0
    if takes and has_flash_attention(segment_ids.device, getattr(torch, dtype), head_dim):
        return varlen.find_segments(segment_ids, counts)
    return segment_ids


def attend(query, key, value, mask=None, causal=False, segment_ids=None):
    """As in `ops/`. `keras.ops.dot_product_attention` copies its inputs and its output."""
    head_dim, groups = query.shape[3], query.shape[2] // key.shape[2]
    if isinstance(segment_ids, varlen.Segments):
        return varlen.varlen_attention(query, key, value, *segment_ids)[0]
    if groups > 1 and query.shape[1] == 1 and not causal:
        # One query a row: the queries that share a head are like those of a sequence.
        query = query.unflatten(2, (-1, groups)).squeeze(1).transpose(1, 2)
        return attend(query, key, value, mask).transpose(1, 2).flatten(1, 2)[:, None]
    has_flash = has_flash_attention(query.device, query.dtype, head_dim)
    shares_heads = groups > 1 and has_flash and mask is None and segment_ids is None
    if groups > 1 and not shares_heads:
        # The other kernels do not share heads: with enable_gqa=True PyTorch would keep the scores
        # in a GPU's memory.
        key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    if segment_ids is not None:
        if is_on_host(query) and HAS_KERNELS:
            return packed_attention(query, key, value, segment_ids)[0]
        mask = (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]).tril()
        causal = False
    if mask is not None:
        # Not -inf: some kernels return NaN for a row of -inf.
        mask = (~mask).to(query.dtype) * (torch.finfo(query.dtype).min / 2)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    output = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, enable_gqa=shares_heads
    )
    return output.transpose(1, 2)
